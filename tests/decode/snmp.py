"""SNMP messages: rows against tshark's dissection, and against what snmptrapd prints."""
import collections
import os
import queue
import re
import socket
import subprocess
import tempfile
import threading

FORMATS = {"snmp1-trap", "snmp2c-trap", "snmp2c-inform", "snmp3"}
PDUS = {0: "get-request", 1: "get-next-request", 2: "response", 3: "set-request", 4: "trap", 5: "get-bulk-request", 6: "inform", 7: "trap", 8: "report"}
UPTIME, TRAP = "1.3.6.1.2.1.1.3.0", "1.3.6.1.6.3.1.1.4.1.0"
MARKER = "1.3.6.1.4.1.8072.9999.9999"


def is_snmp(row):
    return row["type"] == "trap" or row["format"] in FORMATS


# --- tshark

def compare_with_tshark(report, where, row, protocol):
    values = collections.OrderedDict()
    for field in protocol.iter("field"):
        values.setdefault(field.get("name"), field)
    show = lambda name: values[name].get("show") if name in values else None
    theirs = {
        "version": {"0": "1", "1": "2c", "2": "2u", "3": "3"}.get(show("snmp.version") or show("snmp.msgVersion")),
        "request_id": show("snmp.request_id"), "enterprise": show("snmp.enterprise"),
        "agent_address": show("snmp.agent_addr"), "generic_trap": show("snmp.generic_trap"),
        "specific_trap": show("snmp.specific_trap"),
        "engine_boots": show("snmp.msgAuthoritativeEngineBoots"),
        "engine_time_seconds": show("snmp.msgAuthoritativeEngineTime"),
    }
    if "snmp.time_stamp" in values:
        theirs["uptime_ticks"] = show("snmp.time_stamp")
    if "snmp.msgAuthoritativeEngineID" in values:
        theirs["engine_id"] = values["snmp.msgAuthoritativeEngineID"].get("value")
    if "snmp.encryptedPDU" in values:
        theirs["encrypted"] = "True"
    if show("snmp.data"):
        theirs["pdu"] = PDUS.get(int(show("snmp.data")))
    for name, value in theirs.items():
        if value is None:
            continue
        ours = "" if row.get(name) is None else str(row[name])
        report.check(f"SNMP {name}", where, ours, value)
    bindings = []
    for listed in protocol.iter("field"):
        if listed.get("name") == "snmp.variable_bindings":
            for item in listed.findall("field"):
                name = next((field for field in item.iter("field") if field.get("name") == "snmp.name"), None)
                value = next((field for field in item.iter("field") if re.match(r"snmp\.(value\.|noSuch|endOf|unSpec)", field.get("name") or "")), None)
                if name is not None:
                    bindings.append((name.get("show"), value))
    ours = list(row["varbinds"])
    for oid, value in bindings:
        if oid == UPTIME and "uptime_ticks" in row and value is not None and value.get("name") == "snmp.value.timeticks":
            report.check("SNMP uptime", where, str(row["uptime_ticks"]), value.get("show"))
        elif oid == TRAP and "trap_oid" in row and row["version"] != "1" and value is not None:
            report.check("SNMP trap_oid", where, row.get("trap_oid"), value.get("show"))
        elif not ours:
            report.differ("SNMP variable binding is missing", f"{where}: tshark {oid}")
        elif ours[0].get("hidden"):
            report.hidden += 1
            ours.pop(0)
        else:
            binding = ours.pop(0)
            report.check("SNMP oid", where, binding["oid"], oid)
            if value is not None and value.get("value") is not None:
                report.check(f"SNMP value of {binding['type']}", where, *canonical(binding, value))
    if ours and "omitted_bytes" not in row:
        report.differ("SNMP variable binding that tshark does not show", f"{where}: {ours[0]['oid']}")


def canonical(binding, field):
    """The value of a binding here, and the same of tshark's field, in one form."""
    octets = bytes.fromhex(field.get("value"))
    if "value_hex" in binding:
        return binding["value_hex"], octets.hex()
    value = binding.get("value")
    if isinstance(value, str) and binding["type"] == "OCTET STRING":
        return value.encode().hex(), octets.hex()
    return ("" if value is None else str(value)), field.get("show")


# --- snmptrapd

class Messages:
    """Traps and informs of all files, for one run of snmptrapd."""

    def __init__(self):
        self.messages = []

    def add(self, where, row, payload):
        if row.get("pdu") in ("trap", "inform") and not row.get("encrypted"):
            if row.get("security_level", "noAuthNoPriv") == "noAuthNoPriv":
                self.messages.append((where, row, payload))

    def compare(self, report):
        if not self.messages:
            return
        with tempfile.TemporaryDirectory() as folder:
            users = sorted({user for user in (user_of(payload) for _, _, payload in self.messages) if user})
            with open(os.path.join(folder, "snmptrapd.conf"), "w") as file:
                file.write("disableAuthorization yes\n")
                for engine, name in users:
                    file.write(f"createUser -e 0x{engine} {name}\n")
            daemon = Daemon(folder)
            try:
                for where, row, payload in self.messages:
                    compare_with_printed(report, where, row, payload, daemon.print(payload))
            finally:
                daemon.process.kill()
                daemon.process.wait()


class Daemon:
    def __init__(self, folder):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        command = ["snmptrapd", "-f", "-Le", "-n", "-On", "-Oe", "-Ot", "-Ox", "-m", "", "-C", "-c",
                   os.path.join(folder, "snmptrapd.conf"), "-F", "TRAP|%N|%w|%q|%T|%a|%V#%v\n", f"udp:127.0.0.1:{self.address[1]}"]
        environment = {**os.environ, "SNMP_PERSISTENT_DIR": folder, "MIBS": "", "SNMPCONFPATH": folder}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.number = 0
        # Until the daemon listens, datagrams are lost.
        for _ in range(100):
            if self.until_marker(0.2) is not None:
                return
        raise RuntimeError("snmptrapd does not start")

    def read(self):
        for line in self.process.stderr:
            self.lines.put(line)

    def print(self, payload):
        """What the daemon prints of a message: the text before that of the marker sent after it."""
        self.socket.sendto(payload, self.address)
        text = self.until_marker(30)
        if text is None:
            raise RuntimeError("snmptrapd does not answer any more")
        return text

    def until_marker(self, seconds):
        self.number += 1
        try:
            self.socket.sendto(marker(self.number), self.address)
        except ConnectionRefusedError:
            pass
        text = ""
        while True:
            try:
                line = self.lines.get(timeout=seconds)
            except queue.Empty:
                return None
            if f"{MARKER} = INTEGER: {self.number}" in line:
                return text
            text += line


def element(tag, contents):
    length = bytes([len(contents)]) if len(contents) < 128 else b"\x82" + len(contents).to_bytes(2, "big")
    return bytes([tag]) + length + contents


def oid(text):
    numbers = [int(number) for number in text.split(".")]
    octets = bytes([numbers[0] * 40 + numbers[1]])
    for number in numbers[2:]:
        part = [number & 0x7F]
        while number := number >> 7:
            part.insert(0, number & 0x7F | 0x80)
        octets += bytes(part)
    return element(6, octets)


def marker(number):
    value = element(2, number.to_bytes(4, "big"))
    bindings = [element(0x30, oid(UPTIME) + element(0x43, b"\0")), element(0x30, oid(TRAP) + oid(MARKER)),
                element(0x30, oid(MARKER) + value)]
    pdu = element(0xA7, element(2, b"\1") * 1 + element(2, b"\0") * 2 + element(0x30, b"".join(bindings)))
    return element(0x30, element(2, b"\1") + element(4, b"public") + pdu)


def take(octets):
    """Tag, contents and rest of the first element."""
    length, start = octets[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(octets[2:start], "big")
    return octets[0], octets[start:start + length], octets[start + length:]


def user_of(payload):
    """Engine and user of a message of SNMPv3, if snmptrapd can be told of them."""
    try:
        _, message, _ = take(payload)
        _, version, rest = take(message)
        if version != b"\3":
            return None
        _, _, rest = take(rest)
        _, security, _ = take(rest)
        _, security, _ = take(security)
        _, engine, rest = take(security)
        _, _, rest = take(rest)
        _, _, rest = take(rest)
        _, name, _ = take(rest)
        name = name.decode()
        return (engine.hex(), name) if engine and re.fullmatch(r"[\w.-]+", name) else None
    except (IndexError, UnicodeDecodeError):
        return None


def compare_with_printed(report, where, row, payload, text):
    start = text.find("TRAP|")
    if start < 0:
        report.unprinted.append(f"{where}: {row['version']} {row.get('trap_oid')}: {text.strip()[:120]}")
        return
    enterprise, generic, specific, uptime, agent, bindings = text[start + 5:].split("|", 5)
    report.printed += 1
    if row["version"] == "1":
        for name, value in (("enterprise", enterprise.lstrip(".")), ("generic_trap", generic),
                            ("specific_trap", specific.lstrip(".")), ("uptime_ticks", uptime), ("agent_address", agent)):
            report.check(f"snmptrapd {name}", where, str(row.get(name)), value)
    found = [binding.partition(" = ") for binding in re.split(r"#(?=\.\d)", bindings.rstrip("\n")) if binding]
    ours = list(row["varbinds"])
    for name, _, shown in found:
        name, shown = name.lstrip("."), shown.strip()
        if row["version"] != "1" and name == UPTIME and row.get("uptime_ticks") is not None:
            report.check("snmptrapd uptime", where, str(row["uptime_ticks"]), shown)
        elif row["version"] != "1" and name == TRAP and "trap_oid" in row:
            report.check("snmptrapd trap_oid", where, row.get("trap_oid"), shown.removeprefix("OID: ").lstrip("."))
        elif not ours:
            report.differ("variable binding of snmptrapd is missing", f"{where}: {name} = {shown[:60]}")
        elif ours[0].get("hidden"):
            report.hidden += 1
            ours.pop(0)
        else:
            binding = ours.pop(0)
            report.check("snmptrapd oid", where, binding["oid"], name)
            report.check(f"snmptrapd value of {binding['type']}", where, printed(binding), unprefixed(shown))
    if ours and "omitted_bytes" not in row:
        report.differ("variable binding that snmptrapd does not print", f"{where}: {ours[0]['oid']}")


def printed(binding):
    """A value as snmptrapd prints it, without its type."""
    if "value_hex" in binding:
        return bytes.fromhex(binding["value_hex"]).hex(" ").upper()
    value = binding.get("value")
    if binding["type"] == "OCTET STRING":
        return (value or "").encode().hex(" ").upper()
    return "NULL" if value is None else str(value)


def unprefixed(shown):
    value = re.sub(r"\s+", " ", re.sub(r"^(INTEGER|Gauge32|Counter32|Counter64|IpAddress|OID|Hex-STRING|STRING|Opaque|Float|Double|BITS|UInteger32|Network Address|Int64|UInt64): ?", "", shown)).strip()
    return "" if value == '""' else re.sub(r"^\.(?=\d)", "", value)
