#!/usr/bin/env python3
"""A reader of the bus on NATS JetStream in ten lines: prints source and payload of each record.

Needs nats-py and msgpack from PyPI."""
import asyncio, io, ipaddress, sys, msgpack, nats

async def main(server="nats://127.0.0.1:4222", subject="sekiwake.syslog.>"):
    connection = await nats.connect(server)
    subscription = await connection.jetstream().subscribe(subject, ordered_consumer=True)
    async for message in subscription.messages:
        header, records = msgpack.Unpacker(io.BytesIO(message.data))
        version, stream, epoch, first_sequence, count = header[:5]
        for offset, record in enumerate(records):
            captured_at_ns, source, source_port, destination, destination_port, format, flags, payload = record[:8]
            print(stream, message.subject, first_sequence + offset, ipaddress.ip_address(source), source_port, payload)

asyncio.run(main(*sys.argv[1:]))
