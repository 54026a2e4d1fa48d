"""What pods run in diagnostic mode: no node. Probes are content, whoever else asks is told, and SIGTERM ends it. HTTP_PORT says where."""

import http.server
import os
import signal
import ssl
import sys

PROBES = ("/startupz", "/readyz", "/livez")


class Answering(http.server.BaseHTTPRequestHandler):
    def answer(self):
        probed = self.path.partition("?")[0] in PROBES
        body = (
            b'{"ok":true}' if probed else b'{"ok":false,"error":"this pod is in diagnostic mode: no node runs in it"}'
        )
        self.send_response(200 if probed else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("diagnostic mode: no node runs here", flush=True)
server = http.server.ThreadingHTTPServer(("", int(os.environ["HTTP_PORT"])), Answering)
if "TLS_CERT" in os.environ:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["TLS_CERT"], os.environ["TLS_KEY"])
    # The handshake in the thread of the connection: one that says nothing holds up nobody else.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
