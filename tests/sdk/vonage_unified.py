"""PyPI's vonage, driven by JSON lines: see tests/kit/src/sdk.rs. It speaks https only.

usage: python vonage_unified.py CONFIGURATION
"""

import json
import sys

from lines import camel, serve, snake
from vonage import Auth, HttpClientOptions, Vonage
from vonage_video.models import (
    AddStreamRequest,
    ComposedLayout,
    CreateArchiveRequest,
    ListArchivesFilter,
    SessionOptions,
    StreamLayoutOptions,
    TokenOptions,
)

config = json.loads(sys.argv[1])
options = HttpClientOptions(video_host=config["url"].removeprefix("https://"))
video = Vonage(Auth(application_id=config["id"], private_key=config["key"]), options).video


def plain(model):
    return camel(model.model_dump(mode="json", exclude_none=True))


def made(model, given):
    return model(**{snake(key): value for key, value in given.items()})


def create_session(**given):
    return plain(video.create_session(made(SessionOptions, given)) if given else video.create_session())


def token(data=None, **given):
    signed = video.generate_client_token(made(TokenOptions, given | ({"connectionData": data} if data else {})))
    return signed.decode() if isinstance(signed, bytes) else signed


def start(layout=None, **given):
    more = {"layout": made(ComposedLayout, layout)} if layout else {}
    return plain(video.start_archive(made(CreateArchiveRequest, given | more)))


def listed(count=None, **given):
    size = {} if count is None else {"page_size": count}
    items, total, after = video.list_archives(ListArchivesFilter(**{snake(key): value for key, value in given.items()}, **size))
    return {"items": [plain(item) for item in items], "count": total, "next": after}


def add_stream(archiveId, **given):
    return video.add_stream_to_archive(archiveId, made(AddStreamRequest, given))


def set_classes(sessionId, items):
    wanted = [{"id": item["id"], "layout_class_list": item["layoutClassList"]} for item in items]
    return [plain(stream) for stream in video.change_stream_layout(sessionId, StreamLayoutOptions(items=wanted))]


serve(
    {
        "createSession": create_session,
        "token": token,
        "startArchive": start,
        "stopArchive": lambda archiveId: plain(video.stop_archive(archiveId)),
        "getArchive": lambda archiveId: plain(video.get_archive(archiveId)),
        "listArchives": listed,
        "deleteArchive": lambda archiveId: video.delete_archive(archiveId),
        "setLayout": lambda archiveId, **layout: plain(video.change_archive_layout(archiveId, made(ComposedLayout, layout))),
        "addStream": add_stream,
        "removeStream": lambda archiveId, streamId: video.remove_stream_from_archive(archiveId, streamId),
        "listStreams": lambda sessionId: [plain(stream) for stream in video.list_streams(sessionId)],
        "getStream": lambda sessionId, streamId: plain(video.get_stream(sessionId, streamId)),
        "setClasses": set_classes,
    }
)
