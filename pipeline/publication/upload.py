"""Upload a snapshot to a dataset repository of the Hugging Face hub.

Shards go first, in commits of a few files; one last commit has the tables, the card and the name of
the current snapshot. So nobody sees a snapshot that lacks a shard. A shard's name holds
its content's checksum: after an interruption, the shards that are there already are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.snapshot import COMMIT_FILE, TABLES, Snapshot
from manifests.wording import pluralise, size
from pipeline.publication.card_files import card_files
from pipeline.publication.licences import check_publishable, terms_of_snapshot
from shards import hub
from shards.bucket import Url, download
from shards.errors import PretrackError, first_line
from shards.files import Location, read_file, sizes_in

_FILES_PER_COMMIT = 20
_BYTES_PER_COMMIT = 10**10
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Published:
    """What was uploaded: the repository's page, and how many shards were new or there already."""

    page: str
    uploaded: int
    kept: int


@dataclass(frozen=True)
class _Tar:
    """A shard's path in the repository and its size in bytes."""

    path: str
    bytes: int


def publish(
    snapshot: Snapshot,
    repository: str,
    *,
    private: bool = False,
    name: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Published:
    """Upload a snapshot with its card, and make it the repository's current one.

    repository: "OWNER/NAME"; it is made if it does not exist, privately if `private`
    name:       of the dataset, on its card; by default that of the repository
    say:        is told how far the upload is

    Raises PretrackError if the licences forbid it, if a shard is missing or cut short, if the
    repository is public though `private` is asked for or has another build's snapshot of this name,
    without a token, and if the upload fails; the next call then continues.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    terms = terms_of_snapshot(snapshot)
    check_publishable(snapshot, terms)
    place = hub.parse_hub_url(f"hf://datasets/{repository}")
    if place.path or place.revision != "main":
        raise PretrackError(f"{repository} is no repository: name it as OWNER/NAME")
    if not hub.token():
        raise PretrackError(
            f"there is no token for {hub.endpoint()}: run 'hf auth login', or set HF_TOKEN to a "
            "token that may write"
        )
    _check_whole(snapshot)
    name = name or repository.rsplit("/", 1)[1]
    last = _tables(snapshot) | card_files(snapshot, terms, name, repository, hub.endpoint())
    disable_progress_bars()
    api = HfApi(endpoint=hub.endpoint(), token=hub.token())
    with _upload_errors(repository):
        api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.dataset_info(repository).private:
            raise PretrackError(
                f"{repository} exists and is public: make it private on its page, or leave out "
                "--private"
            )
        _check_same_build(snapshot, repository)
        uploaded, kept = _upload_shards(snapshot, repository, api, say)
        _commit(api, repository, last, f"Snapshot {snapshot.name}")
    return Published(f"{hub.endpoint()}/datasets/{repository}", uploaded, kept)


def _tables(snapshot: Snapshot) -> dict[str, bytes]:
    """Read the snapshot's files, by path; the pointer to it is the last."""
    names = [*(f"{table}.parquet" for table in TABLES), "shards.txt", COMMIT_FILE]
    files = {f"snapshots/{snapshot.name}/{file}": snapshot.folder / file for file in names}
    pointer = f'{{"snapshot": "{snapshot.name}"}}'.encode()
    return {**{path: read_file(file) for path, file in files.items()}, "current.json": pointer}


def _check_whole(snapshot: Snapshot) -> None:
    """Raise PretrackError if a shard is not in the output folder, or not as large as it was made.

    A web server lists no folders: what it lacks is found when it is read.
    """
    if str(snapshot.out).startswith(("http://", "https://")):
        return
    here = sizes_in(snapshot.out / "shards")
    for row in snapshot.shards.select(["shard", "bytes"]).to_pylist():
        if here.get(f"{row['shard']}.tar") != row["bytes"]:
            wrong = "cut short" if f"{row['shard']}.tar" in here else "missing"
            raise PretrackError(
                f"nothing was uploaded, because {snapshot.shard_path(row['shard'])} is {wrong}: "
                f"'pretrack verify {snapshot.out} --repair' makes it again"
            )


def _check_same_build(snapshot: Snapshot, repository: str) -> None:
    """Raise PretrackError if the repository has a snapshot of this name with other shards."""
    listed = f"snapshots/{snapshot.name}/shards.txt"
    try:
        there = read_file(Url(f"hf://datasets/{repository}") / listed)
    except FileNotFoundError:
        return
    if there != read_file(snapshot.out / listed):
        raise PretrackError(
            f"{repository} has a snapshot {snapshot.name} of another build: name another repository"
        )


def _upload_shards(
    snapshot: Snapshot, repository: str, api: Any, say: Callable[[str], None]
) -> tuple[int, int]:
    """Upload the shards that the repository lacks; return how many, and how many it had."""
    rows = snapshot.shards.select(["shard", "bytes"]).to_pylist()
    there = sizes_in(Url(f"hf://datasets/{repository}/shards"))
    tars = [_Tar(f"{row['shard']}.tar", row["bytes"]) for row in rows]
    missing = [tar for tar in tars if there.get(tar.path) != tar.bytes]
    kept, total, done = len(tars) - len(missing), sum(tar.bytes for tar in missing), 0
    if kept:
        say(f"{pluralise(kept, 'shard')} of {len(tars):,} {'is' if kept == 1 else 'are'} there")
    uploaded = 0
    for batch in _batches(missing):
        with tempfile.TemporaryDirectory(prefix="pretrack-") as folder:
            files = {
                f"shards/{tar.path}": _local(snapshot.out / "shards" / tar.path, Path(folder))
                for tar in batch
            }
            _commit(api, repository, files, f"Shards of snapshot {snapshot.name}")
        uploaded += len(batch)
        done += sum(tar.bytes for tar in batch)
        say(f"{uploaded:,} of {pluralise(len(missing), 'shard')}, {size(done)} of {size(total)}")
    return uploaded, kept


def _batches(tars: list[_Tar]) -> Iterator[list[_Tar]]:
    """Split shards into commits of at most `_FILES_PER_COMMIT` and about `_BYTES_PER_COMMIT`."""
    batch: list[_Tar] = []
    for tar in tars:
        full = sum(it.bytes for it in batch) + tar.bytes > _BYTES_PER_COMMIT
        if batch and (full or len(batch) == _FILES_PER_COMMIT):
            yield batch
            batch = []
        batch.append(tar)
    if batch:
        yield batch


def _local(file: Location, folder: Path) -> Path:
    """Return a shard's file on this machine; one on a bucket is downloaded into the folder."""
    if isinstance(file, Path):
        return file
    copy = folder / file.name
    with download(file) as source, open(copy, "wb") as target:
        while part := source.read(_COPY_BYTES):
            target.write(part)
    return copy


def _commit(api: Any, repository: str, files: Mapping[str, Path | bytes], message: str) -> None:
    """Upload files in one commit: all of them appear, or none."""
    from huggingface_hub import CommitOperationAdd

    added = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(repository, added, commit_message=message, repo_type="dataset")


@contextmanager
def _upload_errors(repository: str) -> Iterator[None]:
    """Turn the errors of the hub's client into sentences."""
    from huggingface_hub import errors

    network: type[Exception] = errors.HfHubHTTPError.__bases__[
        0
    ]  # the base class of its HTTP library's errors
    try:
        yield
    except (network, RuntimeError, ValueError, ConnectionError) as error:
        # The client wraps what the hub answered to an upload.
        cause = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        if not isinstance(cause, errors.HfHubHTTPError):
            raise _failure(repository, first_line(error)) from error
        status = cause.response.status_code
        said = f"{status}: {cause.server_message or cause.response.reason_phrase}"
        if status in (401, 403):
            raise PretrackError(
                f"{hub.endpoint()} refuses to write to {repository} ({said}): log in with 'hf auth "
                "login' or set HF_TOKEN to a token that may write there"
            ) from error
        raise _failure(repository, said) from error


def _failure(repository: str, reason: str) -> PretrackError:
    return PretrackError(
        f"the upload to {repository} failed ({reason}); run the same command again, which continues"
    )
