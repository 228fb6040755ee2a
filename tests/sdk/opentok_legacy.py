"""PyPI's opentok, driven by JSON lines: see tests/kit/src/sdk.rs.

usage: python opentok_legacy.py CONFIGURATION
"""

import json
import sys
from enum import Enum

from lines import camel, serve, snake
from opentok import ArchiveModes, Client, MediaModes, OutputModes, Roles, StreamModes

config = json.loads(sys.argv[1])
client = Client(config["id"], config["key"], api_url=config["url"])

ENUMS = {
    "archive_mode": ArchiveModes,
    "media_mode": MediaModes,
    "output_mode": OutputModes,
    "stream_mode": StreamModes,
    "role": Roles,
}


def arguments(given):
    named = {snake(key): value for key, value in given.items()}
    return {key: ENUMS[key][value] if key in ENUMS else value for key, value in named.items()}


def plain(archive):
    values = archive.attrs()
    return camel({key: value.value if isinstance(value, Enum) else value for key, value in values.items()})


def token(sessionId, old=False, **given):
    return client.generate_token(sessionId, use_jwt=not old, **arguments(given))


def stop(archiveId, itself=False):
    if not itself:
        return plain(client.stop_archive(archiveId))
    archive = client.get_archive(archiveId)
    archive.stop()
    return plain(archive)


def delete(archiveId, itself=False):
    return client.get_archive(archiveId).delete() if itself else client.delete_archive(archiveId)


def listed(**given):
    found = client.list_archives(**arguments(given))
    return {"items": [plain(item) for item in found], "count": found.count}


def set_layout(archiveId, type, stylesheet=None, screenshareType=None):
    return client.set_archive_layout(archiveId, type, stylesheet, screenshareType)


serve(
    {
        "createSession": lambda **given: {"sessionId": client.create_session(**arguments(given)).session_id},
        "token": token,
        "startArchive": lambda sessionId, **given: plain(client.start_archive(sessionId, **arguments(given))),
        "stopArchive": stop,
        "getArchive": lambda archiveId: plain(client.get_archive(archiveId)),
        "listArchives": listed,
        "deleteArchive": delete,
        "setLayout": set_layout,
        "addStream": lambda **given: client.add_archive_stream(**arguments(given)),
        "removeStream": lambda **given: client.remove_archive_stream(**arguments(given)),
        "listStreams": lambda sessionId: [camel(stream.attrs()) for stream in client.list_streams(sessionId)],
        "getStream": lambda sessionId, streamId: camel(client.get_stream(sessionId, streamId).attrs()),
        "setClasses": lambda sessionId, items: client.set_stream_class_lists(sessionId, items),
    }
)
