"""Hub: weights at `hf://owner/name[@revision][/file]`, and folders that are pushed to a Hugging Face hub.

Both go through the package huggingface_hub, with its cache, its settings (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE) and its
token. The hub is the one of HF_ENDPOINT.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import HfApi, errors

from mim.io.formatting import printable

PREFIX = "hf://"
MODEL = "model.safetensors"
FOLDER = ("config.json", "preprocessor_config.json", MODEL, f"{MODEL}.index.json", "model-*-of-*.safetensors")
PATTERN = re.compile(r"hf:/{1,2}(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
LOG_IN = "log in by `hf auth login`, or set HF_TOKEN to a token of the hub"
UNREACHED = ("Connect", "Timeout", "Protocol")  # in the names of errors of httpx and httpx2
OFFLINE = (errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class HubPath:
    """Weights at a hub.

    Raises ValueError where a path has not the form of one, or leaves its repository.
    """

    repository: str  # owner/name
    revision: str | None = None  # a branch, tag or commit; None for the main branch
    file: str = ""  # empty where the repository is a folder with config.json and model.safetensors

    @classmethod
    def parse(cls, path: str | Path) -> "HubPath":
        """From `hf://owner/name[@revision][/file]`; a `/` in the revision is written %2F."""
        text = _text(path)
        match = PATTERN.fullmatch(text)
        if match is None or ".." in text.split("/"):
            raise ValueError(
                f"{printable(text)} is no place of weights at a hub: write hf://owner/name, hf://owner/name@revision, "
                "or either with /file behind"
            )
        return cls(match["repository"], match["revision"] and unquote(match["revision"]), match["file"] or "")


def is_hub_path(path: str | Path) -> bool:
    """Whether a path is at a hub; pathlib makes `hf:/` of `hf://`."""
    return _text(path).startswith(PREFIX[:-1])


def fetch(path: str | Path) -> Path:
    """The file, or the folder, of weights at a hub on this machine: downloaded, or from huggingface_hub's cache.

    Without a connection the cache is used alone.

    Raises ValueError, with what to do, where there are no such weights, the hub refuses, or it cannot be reached and
    they are not in the cache.
    """
    place = HubPath.parse(path)
    try:
        folder = _download(place)
    except Exception as error:  # its clients for HTTP raise many unrelated types
        cached = _from_cache(place) if _status(error) is None else None
        if cached is None:
            raise ValueError(f"{_text(path)}: {_reason_of_fetch(error, place)}") from error
        folder = cached
    if place.file:
        return folder
    if not (folder / FOLDER[0]).is_file() or not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"{_text(path)}: it has no {FOLDER[0]} with {MODEL}. Name the file of its weights, as in "
            f"{PREFIX}{place.repository}/pytorch_model.bin"
        )
    return folder


def check_repository(repository: str) -> None:
    """Raises ValueError where a hub can have no repository of this name."""
    try:
        huggingface_hub.utils.validate_repo_id(repository)
        if repository.count("/") != 1:
            raise ValueError("it has no owner")
    except ValueError as error:
        reason = str(error).rstrip(".").splitlines()[0]
        raise ValueError(f"--push is {printable(repository)}: {reason}. Write owner/name") from error


def check_token() -> None:
    """Raises ValueError where huggingface_hub has no token, which pushing needs."""
    if not huggingface_hub.get_token():
        raise ValueError(f"--push needs a token that may write, and there is none: {LOG_IN}")


def push(folder: Path, repository: str, private: bool = False, revision: str = "", message: str = "") -> str:
    """Uploads a folder into a repository, which is created where there is none; returns the address of the commit.

    Args:
        folder: what is uploaded; what the repository has beside it stays.
        repository: owner/name.
        private: create it as private. One that is there must be private already.
        revision: a branch, which is created where there is none; empty for main.
        message: of the commit.

    Raises ValueError, with what to do, where there is no token, the hub refuses, or it cannot be reached.
    """
    check_repository(repository)
    check_token()
    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise ValueError("it is public: make it private at the hub first, or leave --private out")
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision or None, commit_message=message or None
        )
    except Exception as error:
        raise ValueError(
            f"--push {repository}: {_reason_of_push(error)}. Nothing of {folder} is lost: repeat the command, or "
            f"`hf upload {repository} {folder}`"
        ) from error
    return commit.commit_url


def _download(place: HubPath, cached: bool = False) -> Path:
    """The file or folder on this machine; cached: without a connection."""
    revision = place.revision
    if place.file:
        return Path(
            huggingface_hub.hf_hub_download(place.repository, place.file, revision=revision, local_files_only=cached)
        )
    return Path(
        huggingface_hub.snapshot_download(
            place.repository, revision=revision, allow_patterns=list(FOLDER), local_files_only=cached
        )
    )


def _from_cache(place: HubPath) -> Path | None:
    """What the cache has, where a connection broke; None where it has nothing."""
    try:
        return _download(place, cached=True)
    except Exception:  # it is not there, or not as a whole
        return None


def _text(path: str | Path) -> str:
    text = path.as_posix() if isinstance(path, Path) else str(path)
    return re.sub(r"^hf:/(?!/)", PREFIX, text)


def _reason_of_fetch(error: Exception, place: HubPath) -> str:
    if isinstance(error, errors.GatedRepoError):
        return f"the hub gives it only to those whom its owner lets in: ask there, and {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{place.repository} has no revision {place.revision or 'main'}: name a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no such repository, or it is private: check owner and name, or {LOG_IN}"
    if isinstance(error, errors.LocalEntryNotFoundError):  # also an EntryNotFoundError
        return "the hub cannot be reached, and it is not in the cache: connect, or name a file that is here"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{place.repository} has no file {place.file}: look at its files at the hub"
    return _reason(error)


def _reason_of_push(error: Exception) -> str:
    status = _status(error)
    if status == 401:
        return f"the hub does not know the token (401): {LOG_IN}"
    if status == 403:
        owner = "it must have the right to write, and you a part in its owner"
        return f"the token may not write there (403): {owner}. Else {LOG_IN}"
    return _reason(error)


def _reason(error: Exception) -> str:
    """What is wrong, in one line that holds no token."""
    status = _status(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if status is not None:
        server = getattr(error, "server_message", None)
        text = f"the hub answered {status}" + (f" ({printable(str(server).splitlines()[0])})" if server else "")
    elif isinstance(error, OFFLINE) or any(word in type(error).__name__ for word in UNREACHED):
        text = f"the hub cannot be reached ({text}): connect, and look at HF_ENDPOINT and HF_HUB_OFFLINE"
    token = huggingface_hub.get_token()
    return text.replace(token, "(token)") if token else text


def _status(error: BaseException | None) -> int | None:
    """The status that the hub answered with; None where it did not answer."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
