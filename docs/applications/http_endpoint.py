"""Segment photos over HTTP, with the server of the standard library.

    python http_endpoint.py --port 8000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/mask -o mask.png
    curl --data-binary @photo.jpg http://127.0.0.1:8000/json

POST a photo to /mask, /color, /overlay or /cutout for a PNG, or to /json. What is wrong with a request is answered
with 4xx and one line.
"""

import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
from PIL import Image

import bitseg

LARGEST_BODY = 20_000_000
"""Bytes."""

PHOTOS_AT_A_TIME = 4
"""Bounds the memory; further requests wait."""

# Pillow refuses pictures with more than twice as many: small files can ask for a lot of memory.
Image.MAX_IMAGE_PIXELS = 25_000_000

CONTENT_TYPES = {f"/{kind}": "image/png" for kind in ("mask", "color", "overlay", "cutout")}
CONTENT_TYPES["/json"] = "application/json"


class RequestError(Exception):
    """What is answered: status and one line."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds without a byte, after which the connection is closed
    error_message_format = "%(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def do_POST(self):
        try:
            photo = self.body()
            if self.path not in CONTENT_TYPES:
                raise RequestError(404, f"no such path: POST a photo to {', '.join(CONTENT_TYPES)}")
            content = io.BytesIO()
            with self.server.vacancies:
                self.server.segmenter.predict(photo).save(content, self.path[1:])
        except RequestError as error:
            self.answer(*error.args)
        except bitseg.ImageError as error:
            self.answer(415, str(error))
        else:
            self.answer(200, content.getvalue(), CONTENT_TYPES[self.path])

    def do_GET(self):
        # A body, which none should have, would be taken for the next request.
        self.close_connection |= "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        self.answer(405, f"POST a photo to {', '.join(CONTENT_TYPES)}")

    def body(self):
        length = self.headers["Content-Length"] or ""
        if not length.isdecimal() or len(length) > 18:
            # Where the body ends, and the next request begins, is unknown.
            self.close_connection = True
            raise RequestError(411, "send the photo with a Content-Length")
        if int(length) > LARGEST_BODY:
            self.discard(int(length))
            raise RequestError(413, f"too large: send at most {LARGEST_BODY // 1_000_000} MB")
        body = self.rfile.read(int(length))
        if self.headers.get_content_maintype() == "multipart":
            raise RequestError(415, "a form: send the photo itself, as curl --data-binary does")
        return body

    def discard(self, length):
        """Read a body to its end: many clients do not look for an answer before."""
        while length and (part := self.rfile.read(min(length, 1 << 20))):
            length -= len(part)

    def answer(self, status, content, content_type="text/plain; charset=utf-8"):
        if isinstance(content, str):
            content = f"{content}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if status == 405:
            self.send_header("Allow", "POST")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """Answers each connection in a thread; all share one Segmenter."""

    request_queue_size = 128  # connections that wait to be taken; of more some are refused

    def __init__(self, address, segmenter):
        super().__init__(address, Handler)
        self.segmenter = segmenter
        self.vacancies = threading.Semaphore(PHOTOS_AT_A_TIME)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client has gone
            super().handle_error(request, client_address)


@click.command(context_settings={"show_default": True})
@click.option("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 takes a free one.")
@click.option("--model", default="voc7-w2a2", help="Name of an installed model, or path of an .h5 file.")
def main(host, port, model):
    """Segment photos that are sent over HTTP."""
    try:
        server = Server((host, port), bitseg.load(model))
    except (bitseg.BitsegError, OSError) as error:  # OSError: the port is taken, or the host is not known
        raise click.ClickException(str(error)) from error
    with server:
        click.echo(f"http://{host}:{server.server_port}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped")


if __name__ == "__main__":
    main()
