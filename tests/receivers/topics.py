#!/usr/bin/env python3
"""Topics of Kafka for tests, through kafka-python: makes them, and reads them from the beginning.

  topics.py create SERVERS TOPIC PARTITIONS [NAME=VALUE ...]
  topics.py count  SERVERS TOPIC             prints the number of records
  topics.py read   SERVERS TOPIC             prints a line of JSON per record, per partition in order
"""

import base64
import json
import sys

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic


def create(servers, topic, partitions, *settings):
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics(
        [NewTopic(topic, int(partitions), 1, topic_configs=dict(setting.split("=", 1) for setting in settings))]
    )


def text(value):
    """Text, or base64 of what is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def begin(servers, topic):
    """A consumer of a topic, and the ends of its partitions.

    tansu says that a partition ends where its last batch begins, so that one is read."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest", check_crcs=True
    )
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    for partition, end in ends.items():
        consumer.seek(partition, end)
    while batches := consumer.poll(timeout_ms=500, max_records=100000):
        for partition, records in batches.items():
            ends[partition] = max(ends[partition], records[-1].offset + 1)
    return consumer, ends


def count(servers, topic):
    _, ends = begin(servers, topic)
    print(sum(ends.values()))


def read(servers, topic):
    consumer, ends = begin(servers, topic)
    partitions = list(ends)
    consumer.seek_to_beginning(*partitions)
    waiting = {partition for partition in partitions if ends[partition] > 0}
    while waiting:
        for partition, records in consumer.poll(timeout_ms=1000, max_records=10000).items():
            for record in records:
                print(
                    json.dumps(
                        {
                            "partition": record.partition,
                            "offset": record.offset,
                            "time": record.timestamp,
                            "key": text(record.key),
                            "value": text(record.value),
                            "headers": {name: text(value) for name, value in record.headers},
                        }
                    )
                )
        waiting = {partition for partition in waiting if consumer.position(partition) < ends[partition]}


if __name__ == "__main__":
    {"create": create, "count": count, "read": read}[sys.argv[1]](*sys.argv[2:])
