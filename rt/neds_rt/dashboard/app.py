"""Serves the page over HTTP. Bokeh's JavaScript comes from its wheel: no network is needed."""

from __future__ import annotations

from typing import Any

from neds_rt.dashboard.feed import Feed
from neds_rt.dashboard.page import Page
from neds_rt.errors import BadInput


def start_app(feed: Feed, host: str, port: int) -> Any:
    """Return a started Bokeh server whose loop is still to be run; raises `BadInput`.

    Browsers may open its websocket only from a page that this very server gave them.
    """
    from bokeh.application import Application
    from bokeh.application.handlers.function import FunctionHandler
    from bokeh.server.server import Server
    from tornado.netutil import bind_sockets

    def build(doc: Any) -> None:
        Page(feed, doc)

    try:
        if port == 0:  # it has to be known before the server is made, for the origins
            sockets = bind_sockets(0, host)
            port = sockets[0].getsockname()[1]
            for sock in sockets:
                sock.close()
        origins = [f"{name}:{port}" for name in {host, "localhost", "127.0.0.1"}]
        server = Server(
            {"/": Application(FunctionHandler(build))}, address=host, port=port,
            allow_websocket_origin=origins, use_index=False,
            # A stalled browser tab is dropped, and asks again when it wakes up.
            check_unused_sessions_milliseconds=5_000, unused_session_lifetime_milliseconds=10_000,
            keep_alive_milliseconds=5_000)
    except OSError as error:
        found = f"{host}:{port} ({error.strerror})"
        raise BadInput("--port", "address", found, "a free one") from error
    server.start()
    return server
