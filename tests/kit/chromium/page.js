// The publisher in the page: pictures with a number in cells, a beep a second, and Janus's own client.
// Cells, pitches and lengths are those of `publisher/media.rs`.
//
// Pictures and sound carry the times at which they were due, as a camera and a microphone stamp theirs, however late a busy
// page hands them over. A captured canvas is stamped when it is read, and an AudioContext on a busy machine loses samples
// before they are sent (190 and 420 ms at once were seen): both would be put down to the recorder.
'use strict';

const FPS = 30;
const LOOP_SECONDS = 64;
const COLUMNS = 16;
const ROWS = 12;
const PITCH = 500;
const PITCH_STEP = 50;
const BEEP = 0.1;
const RATE = 48000;
// 10 ms, what WebRTC takes at once.
const SAMPLES = RATE / 100;

const truth = { frames: [], beeps: [], coded: [], packets: 0 };
const wall = (ms) => (performance.timeOrigin + ms) / 1000;
let plugin = null;
let janus = null;
// Whether coded pictures are noted. They decide then which of the drawn ones were sent.
let notes = false;

function draw(canvas, context, number, code) {
  const { width, height } = canvas;
  const cell = { width: width / COLUMNS, height: height / ROWS };
  context.fillStyle = `hsl(${number % 360} 40% 50%)`;
  context.fillRect(0, 0, width, height);
  context.fillStyle = '#888';
  context.fillRect((number * 3) % width, cell.height * 6, cell.width * 2, cell.height * 4);
  [number, ~number, code, ~code].forEach((bits, row) => {
    for (let column = 0; column < COLUMNS; column++) {
      context.fillStyle = (bits >> column) & 1 ? '#fff' : '#000';
      // Whole pixels, so that cells do not bleed into each other.
      const left = Math.round(column * cell.width);
      const top = Math.round(row * cell.height);
      context.fillRect(left, top, Math.round((column + 1) * cell.width) - left, Math.round((row + 1) * cell.height) - top);
    }
  });
}

// What is drawn: other pictures from the start of the page on, in so many pixels. `resize` changes them.
let look = null;
let start = null;
// The last number that was drawn: while a track replaces another one, each number is drawn once.
let drawn = -1;
// The tracks that are drawn and sounded, the latest of each kind, and the timers that do that.
const sources = {};

function pictures({ width, height, code }) {
  look = { width, height, code };
  let canvas = null;
  let context = null;
  const track = new MediaStreamTrackGenerator({ kind: 'video' });
  const writer = track.writable.getWriter();
  start ??= performance.now();
  const timer = setInterval(() => {
    const number = Math.floor(((performance.now() - start) * FPS) / 1000);
    if (number === drawn) return;
    drawn = number;
    if (canvas?.width !== look.width || canvas?.height !== look.height) {
      canvas = new OffscreenCanvas(look.width, look.height);
      context = canvas.getContext('2d', { alpha: false, willReadFrequently: true });
    }
    draw(canvas, context, number % (FPS * LOOP_SECONDS), look.code);
    const due = start + (number * 1000) / FPS;
    writer.write(new VideoFrame(canvas, { timestamp: Math.round(due * 1000) }));
    if (track.enabled && (plugin || notes)) truth.frames.push([number % (FPS * LOOP_SECONDS), wall(due)]);
  }, 4);
  sources.video = { track, timer };
  return track;
}

function samples(first) {
  const data = new Float32Array(SAMPLES);
  const second = Math.floor(first / RATE) % LOOP_SECONDS;
  data.forEach((_, n) => {
    const at = ((first + n) % RATE) / RATE;
    if (at < BEEP) data[n] = 0.4 * Math.sin(2 * Math.PI * (PITCH + PITCH_STEP * second) * at);
  });
  return data;
}

function sound(from = 0) {
  const track = new MediaStreamTrackGenerator({ kind: 'audio' });
  const writer = track.writable.getWriter();
  const begun = performance.now() - from * 1000;
  const format = { format: 'f32', sampleRate: RATE, numberOfChannels: 1, numberOfFrames: SAMPLES };
  let first = from * RATE;
  const timer = setInterval(() => {
    // What is late comes all at once: none is left out.
    for (; performance.now() - begun >= ((first + SAMPLES) * 1000) / RATE; first += SAMPLES) {
      const due = begun + (first * 1000) / RATE;
      writer.write(new AudioData({ ...format, timestamp: Math.round(due * 1000), data: samples(first) }));
      if (first % RATE === 0 && track.enabled && plugin) truth.beeps.push([(first / RATE) % LOOP_SECONDS, wall(due)]);
    }
  }, 4);
  sources.audio = { track, timer };
  return track;
}

// Notes each coded picture on its way to the network: its source, RTP time and when it was coded.
function noting() {
  const transform = (frame, controller) => {
    const { synchronizationSource, rtpTimestamp } = frame.getMetadata();
    truth.coded.push([synchronizationSource, rtpTimestamp ?? frame.timestamp, wall(performance.now())]);
    controller.enqueue(frame);
  };
  return new TransformStream({ transform });
}

// The same for packets of sound, which are counted alone.
function counting() {
  const transform = (packet, controller) => {
    truth.packets += 1;
    controller.enqueue(packet);
  };
  return new TransformStream({ transform });
}

function attach({ url, apiSecret, token }) {
  return new Promise((resolve, reject) => {
    const fail = (error) => reject(new Error(String(error && error.message ? error.message : error)));
    Janus.init({
      debug: ['error'],
      dependencies: Janus.useDefaultDependencies({ adapter: window.adapter }),
      callback: () => {
        janus = new Janus({
          server: url,
          ...(token ? { token } : { apisecret: apiSecret }),
          iceServers: [],
          destroyOnUnload: false,
          error: fail,
          success: () => {
            const handlers = { resolve: () => {}, connected: () => {} };
            janus.attach({
              plugin: 'janus.plugin.videoroom',
              error: fail,
              success: (handle) => resolve({ handle, handlers }),
              webrtcState: (up) => up && handlers.connected(),
              onmessage: (message, jsep) => handlers.resolve(message, jsep),
            });
          },
        });
      },
    });
  });
}

async function publish(options) {
  const { handle, handlers } = await attach(options);
  // Others come and go meanwhile: not each event is the answer.
  const answer = (ask, isAnswer) =>
    new Promise((resolve, reject) => {
      handlers.resolve = (message, jsep) => {
        if (message.error) reject(new Error(message.error));
        else if (isAnswer(message, jsep)) resolve({ message, jsep });
      };
      ask(reject);
    });
  notes = options.coded;
  const { room, pin, id, display } = options;
  const join = { request: 'join', ptype: 'publisher', room, id, display, ...(pin ? { pin } : {}) };
  await answer(() => handle.send({ message: join }), (message) => message.videoroom === 'joined');
  const tracks = [];
  if (options.audio) {
    const transforms = options.coded ? { transforms: { sender: counting() } } : {};
    tracks.push({ type: 'audio', capture: sound(), recv: false, ...transforms });
  }
  if (options.video) {
    tracks.push({
      type: 'video',
      capture: pictures(options),
      recv: false,
      ...(options.coded ? { transforms: { sender: noting() } } : {}),
      ...(options.svc ? { svc: options.svc } : {}),
      ...(options.simulcast ? { simulcast: true, simulcastMaxBitrates: { low: 100000, medium: 250000, high: 600000 } } : {}),
    });
  }
  const connected = new Promise((resolve) => (handlers.connected = resolve));
  const offer = await new Promise((success, error) => handle.createOffer({ tracks, success, error }));
  const descriptions = (options.descriptions || []).map(({ mid, description }) => ({ mid, description }));
  const message = {
    request: 'publish',
    ...(options.audio ? { audiocodec: 'opus' } : {}),
    ...(options.video ? { videocodec: options.codec } : {}),
    ...(descriptions.length ? { descriptions } : {}),
  };
  const { jsep } = await answer(() => handle.send({ message, jsep: offer }), (_, jsep) => jsep);
  await new Promise((success, error) => handle.handleRemoteJsep({ jsep, success, error }));
  await connected;
  plugin = handle;
  plugin.answer = answer;
  return {};
}

const senders = (kind) => plugin.webrtcStuff.pc.getSenders().filter((sender) => sender.track?.kind === kind);

function mute({ kind, on }) {
  for (const sender of senders(kind)) sender.track.enabled = !on;
  return {};
}

// Pictures have another size from the next one on.
function resize({ width, height }) {
  Object.assign(look, { width, height });
  return {};
}

// Another picture and another sound in the same tracks. Pictures go on with their numbers, sound goes on some seconds later.
async function replace({ width, height, seconds }) {
  for (const kind of ['video', 'audio']) {
    for (const sender of senders(kind)) {
      const before = sources[kind];
      const second = (performance.now() - start) / 1000 + seconds;
      const track = kind === 'video' ? pictures({ ...look, width, height }) : sound(Math.floor(second));
      await sender.replaceTrack(track);
      clearInterval(before.timer);
      before.track.stop();
    }
  }
  return {};
}

// Takes the track of a kind out of the connection, or adds it again, with a new offer.
let removed = {};
async function renegotiate({ kind, on }) {
  const pc = plugin.webrtcStuff.pc;
  if (on) {
    const { transceiver, track } = removed[kind];
    track.enabled = true;
    await transceiver.sender.replaceTrack(track);
    transceiver.direction = 'sendonly';
  } else {
    const transceiver = pc.getTransceivers().find(({ sender }) => sender.track?.kind === kind);
    const { track } = transceiver.sender;
    removed[kind] = { transceiver, track };
    track.enabled = false;
    await transceiver.sender.replaceTrack(null);
    transceiver.direction = 'inactive';
  }
  await pc.setLocalDescription(await pc.createOffer());
  const { type, sdp } = pc.localDescription;
  const send = () => plugin.send({ message: { request: 'configure' }, jsep: { type, sdp } });
  const { jsep } = await plugin.answer(send, (_, jsep) => jsep);
  await pc.setRemoteDescription(jsep);
  return {};
}

// A layer of the picture is sent or not.
async function layer({ rid, on }) {
  for (const sender of senders('video')) {
    const parameters = sender.getParameters();
    for (const encoding of parameters.encodings) if (encoding.rid === rid) encoding.active = on;
    await sender.setParameters(parameters);
  }
  return {};
}

async function stats() {
  const rows = [];
  (await plugin.webrtcStuff.pc.getStats()).forEach((row) => {
    if (row.type === 'outbound-rtp') {
      rows.push({
        kind: row.kind,
        rid: row.rid || null,
        width: row.frameWidth || 0,
        height: row.frameHeight || 0,
        frames: row.framesSent || 0,
        packets: row.packetsSent || 0,
        keyframes: row.keyFramesEncoded || 0,
        plis: row.pliCount || 0,
      });
    }
  });
  return rows;
}

async function leave() {
  const handle = plugin;
  if (notes) {
    // What is drawn is sent before the browser leaves.
    for (const { timer } of Object.values(sources)) clearInterval(timer);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  plugin = null;
  await new Promise((resolve) => handle.send({ message: { request: 'leave' }, success: resolve, error: resolve }));
  await new Promise((resolve) => janus.destroy({ success: resolve, error: resolve }));
  return truth;
}

// Plays a file: goes to each of the times, and tells the time of the picture that is shown there.
function play({ url, times }) {
  return new Promise((done, fail) => {
    const video = document.createElement('video');
    const seen = [];
    document.body.append(video);
    video.muted = true;
    video.preload = 'metadata';
    video.onerror = () => fail(new Error(`the file does not play: ${video.error.message}`));
    const next = () => {
      if (seen.length < times.length) {
        const presented = (now, frame) => {
          seen.push(frame.mediaTime);
          next();
        };
        video.requestVideoFrameCallback(presented);
        video.currentTime = times[seen.length];
      } else {
        video.remove();
        done({ duration: video.duration, width: video.videoWidth, height: video.videoHeight, seen });
      }
    };
    video.onloadedmetadata = next;
    video.src = url;
  });
}

window.publisher = {
  play, publish, mute, resize, replace, renegotiate, layer, stats, leave, truth: () => truth };
