"""Servers that other people wrote on socketserver, unmodified, against real clients."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.programs import environment


def run(program: str, *, packages: list[str], clients: list[str]) -> None:
    """Run a program that serves and asks in a process of its own, with compat in socketserver's place."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    for client in clients:
        if shutil.which(client) is None:
            pytest.skip(f"the client program {client} is not installed")
    ended = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        check=False,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.endswith("done\n")


PRELUDE = """
import compat
compat.install()
import subprocess, threading

def start(server):
    assert isinstance(server, compat.BaseServer), type(server).__mro__
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    return thread

def stop(server, thread):
    server.shutdown()
    thread.join(10)
    assert not thread.is_alive()
    server.server_close()

def output(*command, input=None):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True,
                          timeout=20, input=input).stdout
"""


def test_a_dns_server_answers_dig() -> None:
    """dnslib, over UDP and TCP; the truncated answer is asked for again over TCP."""
    run(
        """
from dnslib import RR
from dnslib.server import BaseResolver, DNSLogger, DNSServer

class Resolver(BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        for number in range(40 if str(request.q.qname).startswith("big") else 1):
            reply.add_answer(*RR.fromZone(f'{request.q.qname} 60 TXT "answer {number} {"x" * 40}"'))
        return reply

for _ in range(50):  # until the number is free in both families of ports
    udp = DNSServer(Resolver(), "127.0.0.1", 0, logger=DNSLogger("-"))
    port = udp.server.server_address[1]
    try:
        tcp = DNSServer(Resolver(), "127.0.0.1", port, tcp=True, logger=DNSLogger("-"))
        break
    except OSError:
        udp.server.server_close()
threads = [start(server.server) for server in (udp, tcp)]
for extra in ("+notcp", "+tcp"):
    for _ in range(5):
        found = output("dig", "+short", "+tries=1", extra, "@127.0.0.1", "-p", port, "small.test", "TXT")
        assert found.startswith('"answer 0'), found
found = output("dig", "+noedns", "+short", "+tries=1", "@127.0.0.1", "-p", port, "big.test", "TXT")
assert len(found.splitlines()) == 40, found
for server, thread in zip((udp, tcp), threads):
    stop(server.server, thread)
print("done")
""",
        packages=["dnslib"],
        clients=["dig"],
    )


def test_an_http_development_server_answers_curl() -> None:
    """werkzeug: plain, threaded, forking and with TLS on the listener."""
    run(
        """
import ssl, trustme
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

def application(environ, start_response):
    request = Request(environ)
    return Response(f"{request.method} {environ['wsgi.url_scheme']} {len(request.get_data())}")(
        environ, start_response)

authority = trustme.CA()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("127.0.0.1").configure_cert(context)
with authority.cert_pem.tempfile() as certificate:
    for options in ({}, {"threaded": True}, {"processes": 3}, {"threaded": True, "ssl_context": context}):
        server = make_server("127.0.0.1", 0, application, **options)
        thread = start(server)
        scheme = "https" if "ssl_context" in options else "http"
        url = f"{scheme}://127.0.0.1:{server.port}/"
        assert output("curl", "-sS", "--cacert", certificate, url, url) == f"GET {scheme} 0" * 2
        said = output("curl", "-sS", "--cacert", certificate, "--data-binary", "@-", url, input="x" * 300_000)
        assert said == f"POST {scheme} 300000", said
        stop(server, thread)
print("done")
""",
        packages=["werkzeug", "trustme"],
        clients=["curl"],
    )


@pytest.mark.parametrize("kind", ["BlockingOSCUDPServer", "ThreadingOSCUDPServer", "ForkingOSCUDPServer"])
def test_an_osc_server_answers_its_client(kind: str) -> None:
    """python-osc, whose verify_request refuses what is no OSC message."""
    run(
        f"""
import socket
from pythonosc import osc_server, udp_client
from pythonosc.dispatcher import Dispatcher

dispatcher = Dispatcher()
dispatcher.map("/ping", lambda address, value: ("/pong", value + 1))
server = osc_server.{kind}(("127.0.0.1", 0), dispatcher)
thread = start(server)
port = server.server_address[1]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
    junk.sendto(b"not OSC", ("127.0.0.1", port))
client = udp_client.DispatchClient("127.0.0.1", port)
got = []
client.dispatcher.map("/pong", lambda address, value: got.append(value))
client.send_message("/ping", 41)
while not got:
    client.handle_messages(0.05)
assert got == [42], got
stop(server, thread)
print("done")
""",
        packages=["pythonosc"],
        clients=[],
    )


def test_a_modbus_server_answers_its_client() -> None:
    """uModbus, on the classes that are handed to it, against pymodbus."""
    run(
        """
import socketserver
from pymodbus.client import ModbusTcpClient
from umodbus.server.tcp import RequestHandler, get_server

for base in (socketserver.TCPServer, socketserver.ThreadingTCPServer):
    registers = {}
    server = get_server(base, ("127.0.0.1", 0), RequestHandler)
    server.route(slave_ids=[1], function_codes=[3], addresses=list(range(10)))(
        lambda slave_id, function_code, address: registers.get(address, 0))
    server.route(slave_ids=[1], function_codes=[16], addresses=list(range(10)))(
        lambda slave_id, function_code, address, value: registers.__setitem__(address, value))
    thread = start(server)
    client = ModbusTcpClient("127.0.0.1", port=server.server_address[1])
    assert client.connect()
    assert not client.write_registers(0, [5, 6, 7]).isError()
    assert client.read_holding_registers(0, count=3).registers == [5, 6, 7]
    client.close()
    stop(server, thread)
print("done")
""",
        packages=["umodbus", "pymodbus"],
        clients=[],
    )


def test_an_xml_rpc_server_answers_its_client() -> None:
    """The standard library's, threaded: keep-alive connections at once, and a multicall."""
    run(
        """
import socketserver, xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from xmlrpc.server import SimpleXMLRPCServer

class Server(socketserver.ThreadingMixIn, SimpleXMLRPCServer):
    pass

server = Server(("127.0.0.1", 0), logRequests=False)
server.register_multicall_functions()
server.register_function(pow)
thread = start(server)
url = "http://127.0.0.1:%d" % server.server_address[1]

def ask(base):
    with xmlrpc.client.ServerProxy(url) as proxy:
        return [proxy.pow(base, exponent) for exponent in range(10)]

with ThreadPoolExecutor(5) as executor:
    assert list(executor.map(ask, range(5))) == [[base**e for e in range(10)] for base in range(5)]
with xmlrpc.client.ServerProxy(url) as proxy:
    several = xmlrpc.client.MultiCall(proxy)
    several.pow(2, 3)
    several.pow(3, 2)
    assert tuple(several()) == (8, 9)
stop(server, thread)
print("done")
""",
        packages=[],
        clients=[],
    )


def test_an_http_server_answers_curl(tmp_path: Path) -> None:
    """The standard library's ThreadingHTTPServer."""
    (tmp_path / "page").write_text("q" * 5000)
    run(
        f"""
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory={str(tmp_path)!r}))
thread = start(server)
url = f"http://127.0.0.1:{{server.server_address[1]}}/page"
assert output("curl", "-sS", url, url) == "q" * 10_000
stop(server, thread)
print("done")
""",
        packages=[],
        clients=["curl"],
    )
