#!/usr/bin/env python3
"""Streams of NATS JetStream for tests, through nats-py: makes them, and reads them from the beginning.

  subjects.py create URL STREAM SUBJECT [NAME=NUMBER ...]   settings such as max_msg_size=1000
  subjects.py count  URL STREAM                             prints the number of messages
  subjects.py leader URL STREAM                             prints the name of the server that leads it
  subjects.py read   URL STREAM                             prints a line of JSON per message, in order
"""

import asyncio
import base64
import json
import sys

import nats
from nats.js.api import StreamConfig


def text(value):
    """Text, or base64 of what is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


async def create(js, stream, subject, *settings):
    numbers = {name: int(value) for name, value in (setting.split("=", 1) for setting in settings)}
    config = StreamConfig(name=stream, subjects=[subject], **numbers)
    for attempt in range(60):
        try:
            return await js.add_stream(config)
        except nats.errors.Error:
            # A cluster that has just been started has no leader.
            if attempt == 59 or "num_replicas" not in numbers:
                raise
            await asyncio.sleep(1)


async def count(js, stream):
    print((await js.stream_info(stream)).state.messages)


async def leader(js, stream):
    print((await js.stream_info(stream)).cluster.leader)


async def read(js, stream):
    left = (await js.stream_info(stream)).state.messages
    messages = await js.subscribe(">", stream=stream, ordered_consumer=True, pending_msgs_limit=-1)
    for _ in range(left):
        message = await messages.next_msg(timeout=60)
        print(
            json.dumps(
                {
                    "sequence": message.metadata.sequence.stream,
                    "subject": message.subject,
                    "value": text(message.data),
                    "headers": dict(message.headers or {}),
                }
            )
        )


async def main(command, url, *arguments):
    client = await nats.connect(url)
    await {"create": create, "count": count, "leader": leader, "read": read}[command](client.jetstream(), *arguments)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
