# Sends requests over a connection that exists, in frames made by hand: one whose TCP checksum is right or wrong; or one that
# the app's TCP does not take, another behind it, and both again in one frame; or one that it takes, and another in one frame
# with that one once more; or the connection's first packet again.
import socket
import struct
import sys
import time

host, port, what, header = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
caller = socket.create_connection((host, port))
kind, tcp_at = (b"\x86\xdd", 54) if caller.family == socket.AF_INET6 else (b"\x08\x00", 34)
own = caller.getsockname()[1]


def ask(target):
    caller.sendall(f"GET {target} HTTP/1.1\r\nHost: app.test\r\n\r\n".encode())
    return caller.recv(65536).decode(errors="replace")


def summed(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


print("before:", ask("/before"), flush=True)

# The first and the last frame of the connection that have gone out, and what has come in.
begin, frame, device, ours, acked = None, None, None, None, None
wire.settimeout(0.3)


def watch():
    global begin, frame, device, ours, acked
    try:
        while True:
            data, address = wire.recvfrom(65536)
            if data[12:14] != kind or data[20 if tcp_at == 54 else 23] != 6:
                continue
            source, destination, sequence, _ = struct.unpack("!HHII", data[tcp_at : tcp_at + 12])
            size = (data[tcp_at + 12] >> 4) * 4
            if tcp_at == 54:
                length = struct.unpack("!H", data[18:20])[0] - size
            else:
                length = struct.unpack("!H", data[16:18])[0] - 20 - size
            if source == own and destination == port:
                frame, device, ours = data[: tcp_at + size], address[0], sequence + length
                begin = begin or data
            elif source == port and destination == own:
                acked = sequence + length
    except TimeoutError:
        pass


watch()

def request(target, header):
    return f"GET {target} HTTP/1.1\r\nHost: app.test\r\n{header}\r\n\r\n".encode()


def send(ahead, body, right):
    ip, tcp = bytearray(frame[14:tcp_at]), bytearray(frame[tcp_at:])
    if tcp_at == 54:
        struct.pack_into("!H", ip, 4, len(tcp) + len(body))
        addresses = bytes(ip[8:40])
    else:
        struct.pack_into("!H", ip, 2, 20 + len(tcp) + len(body))
        struct.pack_into("!H", ip, 10, 0)
        struct.pack_into("!H", ip, 10, ~summed(bytes(ip)) & 0xFFFF)
        addresses = bytes(ip[12:20])
    struct.pack_into("!II", tcp, 4, (ours + ahead) & 0xFFFFFFFF, acked & 0xFFFFFFFF)
    tcp[13] = 0x18
    struct.pack_into("!H", tcp, 16, 0)
    pseudo = addresses + struct.pack("!II", 6, len(tcp) + len(body))
    checksum = ~summed(pseudo + bytes(tcp) + body) & 0xFFFF
    struct.pack_into("!H", tcp, 16, checksum if right else checksum ^ 0x0101)
    wire.sendto(frame[:14] + bytes(ip) + bytes(tcp) + body, (device, 0))


if what == "again":
    first, second = request("/first", "X-Fits: not"), request("/second", header)
    send(0, first, False)
    send(len(first), second, True)
    send(0, first + second, True)
    print("sent", flush=True)
elif what == "twice":
    first, second = request("/first", "X-Fits: not"), request("/second", header)
    send(0, first, True)
    # The caller's own TCP has not asked and takes no answer.
    watch()
    send(0, first + second, True)
    print("sent", flush=True)
elif what == "begin":
    wire.sendto(begin, (device, 0))
    watch()
    print("sent", flush=True)
    caller.sendall(request("/behind", header))
    print("after:", caller.recv(65536).decode(errors="replace"), flush=True)
else:
    send(0, request("/forged", header), what == "right")
    print("sent", flush=True)
    if what == "wrong":
        print("after:", ask("/after"), flush=True)
time.sleep(60)
