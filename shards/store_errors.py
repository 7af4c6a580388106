"""Translate an object store's errors to those of a local disk, in one sentence each."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

import obstore.exceptions as errors

from shards.errors import PretrackError
from shards.hub import REFUSED

_STATUS = re.compile(r"status code: (\d{3})((?: [A-Z][A-Za-z-]*)*)")
_ELEMENTS = {
    name: re.compile(rf"<{name}>(.*?)</{name}>", re.DOTALL) for name in ("Code", "Message")
}
_PROVIDER = "credential provider: "
_LONGEST = 300

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity")
_NO_BUCKET = ("NoSuchBucket", "InvalidBucketName", "ContainerNotFound")


@dataclass(frozen=True)
class _Answer:
    """What a store answered to a request that failed.

    status:        the HTTP status, 0 if there was no answer
    code, message: of the error document in the body; "" without one
    text:          all of it in words
    """

    status: int
    code: str
    message: str
    text: str


def store_error(error: Exception, url: str, region: str) -> OSError | PretrackError:
    """Return the error to raise for one of obstore's: what the store answered, and what to do.

    FileNotFoundError means that there is no such object. PermissionError means that the store
    refuses the credentials. Any other OSError says nothing about the object either.

    A web server without ranges gives a PretrackError: every clip on it would fail, although none is
    damaged.

    region: the region that the request was signed for
    """
    answer = _parse(error)
    if answer.code in _NO_BUCKET or "bucket does not exist" in answer.message:
        bucket = "/".join(url.split("/")[:3])
        sentence = f"there is no bucket {bucket} ({answer.text}); check its name and the endpoint"
        return OSError(errno.EIO, sentence, url)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "is not there", url)
    if isinstance(error, errors.AlreadyExistsError | errors.PreconditionError):
        return FileExistsError(errno.EEXIST, "another process wrote it", url)
    if isinstance(error, errors.NotSupportedError):
        if "Range" not in str(error):
            sentence = f"the store cannot do that: {answer.text}"
            return OSError(errno.ENOTSUP, sentence, url)
        return PretrackError(
            f"{url}: this web server sends only whole files (it ignores 'Range'): use one that "
            "supports ranges, such as nginx, or stream whole tars with 'trainer.data.streaming'"
        )
    if url.startswith("hf:") and answer.status in (401, 403):
        return PermissionError(errno.EACCES, REFUSED, url)
    if refusal := _refusal(error, answer):
        return PermissionError(errno.EACCES, refusal, url)
    return OSError(errno.EIO, _failure(answer, region), url)


def has_answer(error: BaseException) -> bool:
    """Tell whether a store answered, as opposed to one that cannot be reached."""
    return "error sending request" not in str(error)


def is_beyond_the_end(error: BaseException | None) -> bool:
    """Tell whether a store refused a byte range because it begins after the object's end."""
    return _parse(error).status == 416


def _refusal(error: Exception, answer: _Answer) -> str:
    """Explain why the store refuses these credentials; "" if it does not."""
    if _PROVIDER in str(error):
        return f"there are no credentials ({answer.text})"
    if answer.code in _EXPIRED:
        return f"the credentials have expired ({answer.text}); log in again, or set new ones"
    if answer.code in _WRONG_KEYS:
        return f"the store does not know these credentials ({answer.text}); check the keys"
    if answer.code == "RequestTimeTooSkewed":
        return f"this machine's clock is wrong ({answer.text}); set it"
    denied = errors.PermissionDeniedError | errors.UnauthenticatedError
    if answer.status in (401, 403) or isinstance(error, denied):
        return f"access is denied ({answer.text}); check the credentials and what they permit"
    return ""


def _failure(answer: _Answer, region: str) -> str:
    """Explain any other failed request: a wrong region, no answer, or an error of the store."""
    if (
        "incorrectly configured region" in answer.text
        or answer.code in ("PermanentRedirect", "IllegalLocationConstraintException")
        or (answer.code == "AuthorizationHeaderMalformed" and "region" in answer.message)
    ):
        return (
            f"the bucket is in another region than '{region}' ({answer.text}); set AWS_REGION to "
            "the bucket's region"
        )
    if not answer.status and "error sending request" in answer.text:
        return f"the store does not answer ({answer.text}); check the network and the endpoint"
    return f"the store failed: {answer.text}"


def _parse(error: BaseException | None) -> _Answer:
    """Read an obstore error: a sentence, the store's answer, and debug output."""
    text = str(error).split("Debug source:")[0]
    if _PROVIDER in text:  # the error of a Python function that gives the keys
        text = text.split(_PROVIDER, 1)[1].partition(": ")[2]
        return _Answer(0, "", "", _in_one_line(text))
    code, message = (
        _in_one_line(match[1]) if (match := pattern.search(text)) else ""
        for pattern in _ELEMENTS.values()
    )
    status = _STATUS.search(text)
    if status and code:
        text = f"{status[1]}{status[2]}, {code}" + (f": {message}" if message else "")
    return _Answer(int(status[1]) if status else 0, code, message, _in_one_line(text))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST].rstrip(":. ")
