"""Draws figures by vl-convert: a program of its own, so that nothing which V8 does can end the one that asks.

It reads a JSON object from stdin and writes one to stdout. `figures`: specifications with their rows; `kinds`: of
svg, pdf and png, what is drawn of each; `ppi`: of PNG; `snippet`: JavaScript around which Vega is bundled, or empty.
"""

import json
import sys
from base64 import b64encode

import vl_convert


def main() -> None:
    """Answers with `figures`, each with its SVG, and its PDF and PNG in base64, and with the bundle `library`."""
    request = json.load(sys.stdin)
    figures = []
    for spec in request["figures"]:
        svg = vl_convert.vegalite_to_svg(spec).replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1)
        files = {"svg": svg}
        if "pdf" in request["kinds"]:
            files["pdf"] = b64encode(vl_convert.svg_to_pdf(svg)).decode("ascii")
        if "png" in request["kinds"]:
            files["png"] = b64encode(vl_convert.svg_to_png(svg, scale=1.0, ppi=request["ppi"])).decode("ascii")
        figures.append(files)
    library = vl_convert.javascript_bundle(request["snippet"]) if request["snippet"] else ""
    json.dump({"figures": figures, "library": library}, sys.stdout)


if __name__ == "__main__":
    main()
