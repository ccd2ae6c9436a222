#!/usr/bin/env python3
"""Three fake brokers of librdkafka (rd_kafka_mock_*), with the topic "logs" of six partitions.

  mock_brokers.py COMMANDS

Prints the bootstrap servers, and obeys lines that are appended to the file COMMANDS, each
acknowledged by a line:  errors ERROR ...    of the next produce requests
                         leader PARTITION BROKER | down BROKER | up BROKER
"""

import ctypes
import pathlib
import sys
import time

import confluent_kafka

# The library in the package is newer than Debian's.
libraries = pathlib.Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs")
rdkafka = ctypes.CDLL(str(next(libraries.glob("librdkafka*"))))
for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
    getattr(rdkafka, name).restype = ctypes.c_void_p
rdkafka.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p

error = ctypes.create_string_buffer(512)
conf = ctypes.c_void_p(rdkafka.rd_kafka_conf_new())
client = ctypes.c_void_p(rdkafka.rd_kafka_new(0, conf, error, ctypes.c_size_t(512)))
cluster = ctypes.c_void_p(rdkafka.rd_kafka_mock_cluster_new(client, 3))
rdkafka.rd_kafka_mock_topic_create(cluster, b"logs", 6, 3)
print(rdkafka.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)

PRODUCE = 0
with open(sys.argv[1]) as commands:
    while True:
        line = commands.readline()
        if not line.endswith("\n"):
            time.sleep(0.01)
            continue
        name, *numbers = line.split()
        numbers = [int(number) for number in numbers]
        if name == "errors":
            errors = (ctypes.c_int * len(numbers))(*numbers)
            rdkafka.rd_kafka_mock_push_request_errors_array(
                cluster, ctypes.c_int16(PRODUCE), ctypes.c_size_t(len(numbers)), errors
            )
        elif name == "leader":
            rdkafka.rd_kafka_mock_partition_set_leader(cluster, b"logs", numbers[0], numbers[1])
        elif name == "down":
            rdkafka.rd_kafka_mock_broker_set_down(cluster, numbers[0])
        elif name == "up":
            rdkafka.rd_kafka_mock_broker_set_up(cluster, numbers[0])
        print(line.strip(), flush=True)
