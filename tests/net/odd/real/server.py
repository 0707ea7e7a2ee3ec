import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served = 0

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline().strip(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self):
        content = self.body()
        self.served += 1
        self.send_response(200)
        self.send_header("X-Answered-By", "pod")
        self.send_header("X-Target", self.path)
        if self.served == 60:
            self.send_header("Connection", "close")
        chunked = len(content) % 2 == 1
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            if chunked:
                content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    # All callers connect at once.
    request_queue_size = 128

    def shutdown_request(self, request):
        # Python's own way closes at once, and resets what a caller has sent behind its last request: that may cost the
        # caller the last answer (RFC 9112 section 9.6), with nobody in between too. So it is read first.
        try:
            request.shutdown(socket.SHUT_WR)
            request.settimeout(2)
            while request.recv(65536):
                pass
        except OSError:
            pass
        self.close_request(request)


server = Server(("::", int(sys.argv[1])), Echo)
print("listening", flush=True)
server.serve_forever()
