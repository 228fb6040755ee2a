// npm's opentok, driven by JSON lines: see tests/kit/src/sdk.rs. With a private key as its secret it speaks as a unified application does.
//
// usage: node opentok.mjs FOLDER_WITH_NODE_MODULES CONFIGURATION

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { serve } from './lines.mjs';

const [modules, text] = process.argv.slice(2);
const require = createRequire(join(modules, 'package.json'));
const OpenTok = require('opentok');

const config = JSON.parse(text);
const opentok = new OpenTok(config.id, config.key, config.url);

// A call with a callback. startArchive tells what a conflict is in an error behind the error.
const ask = (method, ...args) =>
  new Promise((resolve, reject) => {
    opentok[method](...args, (error, value, more) => {
      if (error) reject(value instanceof Error ? value : error);
      else resolve(method === 'listArchives' ? { items: value, count: more } : value);
    });
  });

const on = (archive, method) =>
  new Promise((resolve, reject) => archive[method]((error, value) => (error ? reject(error) : resolve(value))));

const KINDS = ['ArgumentError', 'AuthError', 'ArchiveError', 'NotFoundError', 'RequestError'];
const kind = (error) => KINDS.find((name) => OpenTok[name] && error instanceof OpenTok[name]) ?? error.constructor.name;

serve(
  {
    createSession: async (options) => ({ sessionId: (await ask('createSession', options)).sessionId }),
    token: ({ sessionId, old, ...options }) => opentok.generateToken(sessionId, options, old),
    startArchive: ({ sessionId, ...options }) => ask('startArchive', sessionId, options),
    stopArchive: async ({ archiveId, itself }) =>
      itself ? on(await ask('getArchive', archiveId), 'stop') : ask('stopArchive', archiveId),
    getArchive: ({ archiveId }) => ask('getArchive', archiveId),
    listArchives: (filter) => ask('listArchives', filter),
    deleteArchive: async ({ archiveId, itself }) =>
      itself ? on(await ask('getArchive', archiveId), 'delete') : ask('deleteArchive', archiveId),
    setLayout: ({ archiveId, type, stylesheet, screenshareType }) =>
      ask('setArchiveLayout', archiveId, type, stylesheet ?? null, screenshareType ?? null),
    addStream: ({ archiveId, streamId, ...options }) => ask('addArchiveStream', archiveId, streamId, options),
    removeStream: ({ archiveId, streamId }) => ask('removeArchiveStream', archiveId, streamId),
    listStreams: ({ sessionId }) => ask('listStreams', sessionId),
    getStream: ({ sessionId, streamId }) => ask('getStream', sessionId, streamId),
    setClasses: ({ sessionId, items }) => ask('setStreamClassLists', sessionId, items),
    registerCallback: (options) => ask('registerCallback', options),
    listCallbacks: () => ask('listCallbacks', {}),
    unregisterCallback: ({ id }) => ask('unregisterCallback', id),
  },
  (error) => ({ kind: kind(error), status: null, message: error.message }),
);
