"""What bench (f) works with: a topic, a database, and Kafka Connect with Debezium's JDBC sink between them."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

# How long a step may take, in seconds.
GIVE_UP = 600
# The console producer writes a tombstone where it reads this.
TOMBSTONE = "<tombstone>"


class Kafka:
    """One topic, worked with Kafka's own command line tools."""

    def __init__(self, args, topic):
        self.args, self.topic = args, topic

    def tool(self, name, *options, **how):
        command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{self.args.kafka_lib}/*", name, "--bootstrap-server", self.args.kafka, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **how)

    def topics(self, *options):
        tool = self.tool("org.apache.kafka.tools.TopicCommand", "--topic", self.topic, *options)
        if tool.wait(GIVE_UP):
            sys.exit(f"the topic command failed: {tool.stdout.read()}")

    def producer(self):
        reader = {"parse.key": "true", "key.separator": "\t", "null.marker": TOMBSTONE}
        properties = [word for name, value in reader.items() for word in ("--reader-property", f"{name}={value}")]
        producer = self.tool("org.apache.kafka.tools.ConsoleProducer", "--topic", self.topic, *properties, stdin=subprocess.PIPE)
        threading.Thread(target=producer.stdout.read, daemon=True).start()  # Its prompts.
        return producer

    def publish(self, lines):
        """Publishes `lines` and returns when the tool had ended."""
        producer = self.producer()
        producer.stdin.writelines(lines)
        producer.stdin.close()
        if producer.wait(GIVE_UP):
            sys.exit("the console producer failed")
        return time.monotonic()

    def settings(self):
        tool = self.tool("kafka.admin.ConfigCommand", "--describe", "--all", "--entity-type", "topics", "--entity-name", self.topic)
        return dict(re.findall(r"^\s+([a-z.]+)=(\S+) sensitive", tool.communicate(timeout=GIVE_UP)[0], re.MULTILINE))

    def files(self):
        return [file for folder in self.args.kafka_logs.glob(f"{self.topic}-*") for file in folder.iterdir()]


class Postgres:
    """One database of a server, worked with psql."""

    def __init__(self, args, database):
        self.args, self.database = args, database
        self.url = urllib.parse.urlsplit(args.postgres)

    def sql(self, text, database=None):
        url = self.url._replace(path="/" + (database or self.database)).geturl()
        return subprocess.run(["psql", "-XAtq", "-d", url, "-c", text], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def jdbc(self):
        return f"jdbc:postgresql://{self.url.hostname}:{self.url.port}/{self.database}"

    def files(self):
        """The files of the table's database and those of the write-ahead log, after everything was written to them."""
        self.sql("CHECKPOINT")
        number = self.sql("SELECT oid FROM pg_database WHERE datname = current_database()")
        folders = self.args.postgres_data / "base" / number, self.args.postgres_data / "pg_wal"
        return [[file for file in folder.iterdir() if file.is_file()] for folder in folders]


class Connect:
    """A Kafka Connect worker with one connector: Debezium's JDBC sink, with the fastest settings we know."""

    def __init__(self, args, kafka, postgres, columns, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.rest = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.name, self.log = kafka.topic, folder / "log"
        # The schema stands in the converter's settings once, instead of in each record.
        schema = {"type": "struct", "fields": [{"field": name, "type": "string"} for name in columns]}
        worker = {
            "bootstrap.servers": args.kafka, "listeners": self.rest, "plugin.path": args.plugins,
            "offset.storage.file.filename": folder / "offsets", "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "true",
            "value.converter.schema.content": json.dumps(schema),
        }
        sink = {
            "name": self.name, "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector", "topics": kafka.topic,
            "tasks.max": args.partitions, "connection.url": postgres.jdbc(), "connection.username": postgres.url.username,
            "connection.password": postgres.url.password or "none", "collection.name.format": "orders", "schema.evolution": "none",
            "transforms": "key", "transforms.key.type": "org.apache.kafka.connect.transforms.HoistField$Key",
            "transforms.key.field": "order_id", "primary.key.mode": "record_key", "insert.mode": "upsert", "delete.enabled": "true",
            "batch.size": 5000, "use.reduction.buffer": "true", "dialect.postgres.unnest.insert.enabled": "true",
            "consumer.override.max.poll.records": 5000,
        }
        files = folder / "worker.properties", folder / "sink.properties"
        for file, settings in zip(files, (worker, sink)):
            file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["java", "-Xms512m", "-Xmx1g", f"-Dlog4j2.configurationFile={args.kafka_lib.parent}/log4j2.properties", "-cp", f"{args.kafka_lib}/*",
                 "org.apache.kafka.connect.cli.ConnectStandalone", *map(str, files)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def check(self):
        """Whether every task runs; ends the bench when one has failed."""
        try:
            with urllib.request.urlopen(f"{self.rest}/connectors/{self.name}/status", timeout=10) as answer:
                states = [task["state"] for task in json.load(answer)["tasks"]]
        except (urllib.error.URLError, TimeoutError):
            states = []
        if "FAILED" in states or self.process.poll() is not None:
            sys.exit(f"Kafka Connect failed:\n{self.log.read_text(errors='replace')[-3000:]}")
        return bool(states) and set(states) == {"RUNNING"}

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
