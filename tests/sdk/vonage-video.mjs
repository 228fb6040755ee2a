// npm's @vonage/video, driven by JSON lines: see tests/kit/src/sdk.rs.
//
// usage: node vonage-video.mjs FOLDER_WITH_NODE_MODULES CONFIGURATION

import { load, serve } from './lines.mjs';

const [modules, text] = process.argv.slice(2);
const { Video } = await load(modules, '@vonage/video');
const { Auth } = await load(modules, '@vonage/auth');

const config = JSON.parse(text);
const auth = new Auth({ applicationId: config.id, privateKey: config.key });
const video = new Video(auth, { videoHost: config.url });

serve(
  {
    createSession: (options) => video.createSession(Object.keys(options).length ? options : undefined),
    token: ({ sessionId, ...options }) => video.generateClientToken(sessionId, options),
    startArchive: ({ sessionId, ...options }) => video.startArchive(sessionId, options),
    stopArchive: ({ archiveId }) => video.stopArchive(archiveId),
    getArchive: ({ archiveId }) => video.getArchive(archiveId),
    listArchives: (filter) => video.searchArchives(filter),
    deleteArchive: ({ archiveId }) => video.deleteArchive(archiveId),
    setLayout: ({ archiveId, ...layout }) => video.updateArchiveLayout(archiveId, layout),
    addStream: ({ archiveId, streamId, hasAudio, hasVideo }) => video.addArchiveStream(archiveId, streamId, hasAudio, hasVideo),
    removeStream: ({ archiveId, streamId }) => video.removeArchiveStream(archiveId, streamId),
    listStreams: async ({ sessionId }) => (await video.getStreamInfo(sessionId)).items,
    getStream: ({ sessionId, streamId }) => video.getStreamInfo(sessionId, streamId),
    setClasses: ({ sessionId, items }) => video.setStreamClassLists(sessionId, items),
  },
  (error) => ({ kind: error.constructor.name, status: error.response?.status ?? null, message: error.message }),
);
