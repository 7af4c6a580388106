"""Check that `gs://` and `az://` find credentials, before obstore waits long for a machine's role.

obstore looks in the environment, and Google's also in the file that `gcloud` writes. If there are
none, it asks the metadata service of the machine, which only machines of these clouds have.
"""

from __future__ import annotations

import http.client
import os
from pathlib import Path

from shards.errors import PretrackError

_TIMEOUT_S = 2.0
_ADDRESS = "169.254.169.254"
_GOOGLE = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_SKIP_SIGNATURE",
)
_GCLOUD = ".config/gcloud/application_default_credentials.json"
_AZURE = ("KEY", "SAS", "SECRET", "TOKEN", "SKIP", "CLI", "EMULATOR", "ENDPOINT")
"""Parts of the names of Azure's variables that give credentials, or say where to get them."""


def check_role(scheme: str) -> None:
    """Raise PretrackError, within seconds, if there is nothing that gives credentials."""
    if scheme == "gs":
        _check_google()
    # Without the account's name, obstore says at once that it is needed.
    if scheme == "az" and os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"):
        _check_azure()


def _check_google() -> None:
    if any(os.environ.get(name) for name in _GOOGLE) or (Path.home() / _GCLOUD).is_file():
        return
    hosts = (
        os.environ.get("GCE_METADATA_HOST", "metadata.google.internal"),
        os.environ.get("GCE_METADATA_IP", _ADDRESS),
    )
    path = "/computeMetadata/v1/instance/service-accounts/"
    if not any(_answers(host, path, {"Metadata-Flavor": "Google"}) for host in hosts):
        raise PretrackError(
            "there are no credentials: GOOGLE_APPLICATION_CREDENTIALS is not set, there is no "
            f"~/{_GCLOUD}, and no metadata service answers at {hosts[1]}; set the variable, or run "
            "'gcloud auth application-default login'"
        )


def _check_azure() -> None:
    given = [name for name, value in os.environ.items() if value and name.startswith("AZURE_")]
    given = [name for name in given if any(part in name for part in _AZURE)]
    if given or os.environ.get("IDENTITY_ENDPOINT") or os.environ.get("MSI_ENDPOINT"):
        return
    if not _answers(_ADDRESS, "/metadata/versions", {"Metadata": "true"}):
        raise PretrackError(
            "there are no credentials: AZURE_STORAGE_ACCOUNT_KEY is not set, and no metadata "
            f"service answers at {_ADDRESS}; set the variable, or AZURE_STORAGE_SAS_KEY"
        )


def _answers(host: str, path: str, headers: dict[str, str]) -> bool:
    """Tell whether a metadata service answers, whatever it says: obstore passes that on."""
    try:
        connection = http.client.HTTPConnection(host, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path, headers=headers)
            connection.getresponse()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True
