"""Watch: one local page that follows running and finished runs, from their folders alone.

from mim.lab.watch import WatchServer
with WatchServer([Path("runs")]) as server:
    print(server.url)
    server.serve_forever()
"""

from mim.lab.watch.server import WatchServer

__all__ = ["WatchServer"]
