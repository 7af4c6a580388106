"""A wrong `ray.address` is one sentence within seconds, whatever is at that address."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.config import RaySettings
from pipeline.ray_cluster import _check_address, connect
from shards.errors import PretrackError
from tests.helpers.object_store import free_port


@pytest.fixture(autouse=True)
def no_ray() -> None:
    """`connect` does nothing in a process that uses Ray already."""
    ray.shutdown()


def sentence(address: str) -> str:
    """Return what `connect` says about an address, within ten seconds."""
    started = time.monotonic()
    with pytest.raises(PretrackError) as caught:
        connect(RaySettings(address=address))
    assert time.monotonic() - started < 10
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_at_which_nobody_listens(scheme: str) -> None:
    port = free_port()
    assert sentence(f"{scheme}127.0.0.1:{port}") == (
        f"no Ray cluster answers at ray.address '{scheme}127.0.0.1:{port}': nothing answers on "
        f"port {port} of 127.0.0.1 (Connection refused); start Ray there, or correct the address"
    )


def test_a_cluster_of_the_environment_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert f"ray.address 'auto': nothing answers on port {port} of" in sentence("auto")


def test_a_host_that_does_not_exist() -> None:
    assert "nothing answers on port 6379 of no.such.invalid (" in sentence("no.such.invalid:6379")


@pytest.mark.parametrize("address", ["head-node", "head:port", "ray://:1", "127.0.0.1:99999"])
def test_an_address_that_is_none(address: str) -> None:
    assert sentence(address).endswith(f"'{address}': write HOST:PORT, ray://HOST:PORT or auto")


@contextmanager
def web_page() -> Iterator[int]:
    """Serve what Ray's dashboard serves, a web page; yields the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_the_port_of_the_dashboard() -> None:
    with web_page() as port:
        assert f"what listens on port {port} of 127.0.0.1 is not Ray" in sentence(
            f"127.0.0.1:{port}"
        )


@pytest.mark.slow
def test_a_port_that_never_says_a_word() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        assert f"nothing answers on port {port} of 127.0.0.1 (timed out)" in sentence(
            f"127.0.0.1:{port}"
        )


@pytest.mark.slow
def test_a_cluster_that_runs_is_used() -> None:
    head = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        _check_address(cluster.address)
        assert connect(RaySettings(address=cluster.address)).cpus == 3
    finally:
        ray.shutdown()
        cluster.shutdown()
