"""Find the keys for `s3://`, in the order in which AWS's own tools look.

1. the environment: AWS_ACCESS_KEY_ID, or the variables of a container or a web identity
2. the profile AWS_PROFILE (or `default`) in `~/.aws/credentials` and `~/.aws/config`
3. the role of this machine, from its metadata service

obstore alone knows the environment and the metadata service, and waits minutes for the latter on a
machine that has none.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shards.errors import PretrackError

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_KNOWN_TO_OBSTORE = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_LOGINS = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "credential_process",
    "web_identity_token_file",
    "login_session",
)
"""Keys of a profile that gets its credentials from elsewhere."""
_METADATA = "http://169.254.169.254"
_METADATA_TIMEOUT_S = 2.0
_REREAD_AFTER = timedelta(minutes=15)
"""How long keys of a file are used before it is read again: login tools replace them."""


@dataclass(frozen=True)
class _Profile:
    """A profile of AWS's two files: its values, and the names of all profiles there."""

    name: str
    values: Mapping[str, str]
    known: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, str] | None:
        """The access key and its secret, if the profile holds them."""
        key, secret = (self.values.get(name.lower(), "") for name in _KEYS)
        return (key, secret) if key and secret else None


def environment_of_store() -> tuple[str, ...]:
    """Return the variables that decide how `s3://` is opened; a change of them opens it again."""
    names = (*_KEYS, "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION")
    return tuple(os.environ.get(name, "") for name in names)


def s3_region() -> str:
    """Return the region that requests are signed for, as obstore chooses it."""
    return str(
        os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or _read_profile().values.get("region", "us-east-1")
    )


def s3_options() -> dict[str, Any]:
    """Return obstore's options for what the environment does not say: keys, region, endpoint.

    Raises PretrackError, within seconds, if there are no credentials: it says where they were
    looked for.
    """
    given = os.environ
    profile = _read_profile()
    options: dict[str, Any] = {}
    if not (given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION")):
        options |= {"region": profile.values["region"]} if "region" in profile.values else {}
    if not given.get("AWS_ENDPOINT_URL") and "endpoint_url" in profile.values:
        options["endpoint"] = profile.values["endpoint_url"]
    if any(given.get(name) for name in _KNOWN_TO_OBSTORE):
        return options
    if lacking := [name for name in _KEYS if not given.get(name)]:
        if len(lacking) == 1:
            (given_key,) = set(_KEYS) - set(lacking)
            raise PretrackError(f"{given_key} is set, and {lacking[0]} is not; set both")
        options |= _options_of_profile(profile)
    return options


def _options_of_profile(profile: _Profile) -> dict[str, Any]:
    """Return the option that gives the profile's keys, or those of this machine's role."""
    if profile.keys:
        return {"credential_provider": partial(_keys_of_profile, profile.name)}
    if logins := [name for name in _LOGINS if name in profile.values]:
        return {"credential_provider": _boto3_provider(profile.name, logins[0])}
    named = os.environ.get("AWS_PROFILE")
    if named and named not in profile.known:
        profiles = ", ".join(profile.known) or "none"
        raise PretrackError(
            f"there is no profile '{named}' (AWS_PROFILE) in {_file('credentials')} or "
            f"{_file('config')} (there are: {profiles}); name one of them"
        )
    if problem := _metadata_problem():
        raise PretrackError(
            f"there are no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, "
            f"{_file('credentials')} has no keys for the profile '{profile.name}', and {problem}; "
            "set the two variables, or AWS_PROFILE"
        )
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    return {"metadata_endpoint": endpoint} if endpoint else {}


def _keys_of_profile(name: str) -> dict[str, Any]:
    """Read the keys of a profile, for obstore, which calls this again once they expire."""
    profile = _read_profile(name)
    if profile.keys is None:
        raise PretrackError(f"{_file('credentials')} has no keys for the profile '{name}' any more")
    key, secret = profile.keys
    return {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": profile.values.get("aws_session_token"),
        "expires_at": datetime.now(UTC) + _REREAD_AFTER,
    }


def _boto3_provider(name: str, login: str) -> Any:
    """Return what gets keys for a profile that logs in (SSO, a role, a program), by boto3."""
    if find_spec("boto3") is None:
        raise PretrackError(
            f"the profile '{name}' gets its keys by '{login}', which needs the package boto3: "
            "pip install 'pretrack[aws]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    import boto3.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.session.Session(profile_name=name))
    except (BotoCoreError, ValueError) as error:
        raise PretrackError(f"the profile '{name}' gives no keys: {error}") from error


def _metadata_problem() -> str:
    """Say why this machine's metadata service gives no keys; "" if it does.

    Asks as obstore would (IMDSv2: a token, then the role), but only once.
    """
    given = os.environ
    if given.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return "the metadata service is off (AWS_EC2_METADATA_DISABLED)"
    endpoint = (
        given.get("AWS_METADATA_ENDPOINT")
        or given.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        or _METADATA
    )
    host = urlsplit(endpoint).netloc
    connection = http.client.HTTPConnection(host, timeout=_METADATA_TIMEOUT_S)
    try:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        connection.request("PUT", "/latest/api/token", headers=lifetime)
        answer = connection.getresponse()
        token = answer.read(1 << 16).decode(errors="replace")
        if answer.status != 200:
            return f"the metadata service at {host} answers {answer.status}"
        roles = "/latest/meta-data/iam/security-credentials/"
        connection.request("GET", roles, headers={"X-aws-ec2-metadata-token": token})
        status = connection.getresponse().status
        return "" if status == 200 else f"this machine has no role (its service answers {status})"
    except (OSError, http.client.HTTPException, ValueError):
        return f"no metadata service answers at {host}"
    finally:
        connection.close()


def _read_profile(name: str | None = None) -> _Profile:
    """Read a profile, by default the one that AWS_PROFILE names; without values if it is absent."""
    name = name or os.environ.get("AWS_PROFILE") or "default"
    config = {
        section.removeprefix("profile ").strip(): values
        for section, values in _read_ini(_file("config")).items()
        if section == "default" or section.startswith("profile ")
    }
    credentials = _read_ini(_file("credentials"))
    return _Profile(
        name,
        {**config.get(name, {}), **credentials.get(name, {})},
        tuple(sorted(config.keys() | credentials.keys())),
    )


def _file(name: str) -> Path:
    """Give the path of AWS's file `config` or `credentials`, whether it exists or not."""
    variable = {"config": "AWS_CONFIG_FILE", "credentials": "AWS_SHARED_CREDENTIALS_FILE"}[name]
    return Path(os.environ.get(variable) or f"~/.aws/{name}").expanduser()


def _read_ini(file: Path) -> dict[str, dict[str, str]]:
    """Read the sections of an INI file; none if there is no such file. Raises PretrackError."""
    parser = ConfigParser(interpolation=None, strict=False, default_section="")
    try:
        parser.read_string(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, IniError) as error:
        reason = " ".join(str(error).split())
        raise PretrackError(
            f"the file of AWS credentials {file} cannot be read: {reason}"
        ) from error
    return {section: dict(parser[section]) for section in parser.sections()}
