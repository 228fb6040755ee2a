// Drives one browser with one publishing page. Commands come as JSON lines on stdin, `{"do": …, …}`; each gets
// one JSON line on stdout, `{"ok": …}` or `{"error": …}`. The browser ends when stdin does.
//
// usage: node publisher.mjs FOLDER_WITH_NODE_MODULES FOLDER_OF_JANUS_JS CHROMIUM

import { createRequire } from 'node:module';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { join } from 'node:path';

const [modules, janusFolder, executablePath] = process.argv.slice(2);
const require = createRequire(join(modules, 'package.json'));
const { chromium } = require('playwright-core');

const here = new URL('.', import.meta.url).pathname;
const scripts = [
  join(modules, 'node_modules/webrtc-adapter/out/adapter.js'),
  join(janusFolder, 'janus.js'),
  join(here, 'page.js'),
];

// A page of this machine's own address is a secure context, which WebRTC wants.
const server = createServer((request, response) => {
  response.setHeader('content-type', 'text/html').end('<!doctype html><title>publisher</title><body>');
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));

const browserServer = await chromium.launchServer({
  executablePath,
  headless: true,
  host: '127.0.0.1',
  args: [
    '--no-sandbox',
    '--allow-loopback-in-peer-connection',
    '--disable-features=WebRtcHideLocalIpsWithMdns',
    '--autoplay-policy=no-user-gesture-required',
    // Without it pictures below 960x540 get two layers only.
    '--force-fieldtrials=WebRTC-LegacySimulcastLayerLimit/Disabled/',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-background-timer-throttling',
    '--disable-backgrounding-occluded-windows',
    '--disable-renderer-backgrounding',
    '--disable-component-update',
    '--disable-sync',
  ],
});

// Other tests give the machine addresses and take them away. Chromium then ends what it is loading. That says nothing of what is
// loaded, so it is loaded again; whatever else fails is told.
const NETWORK_CHANGED = 'net::ERR_NETWORK_CHANGED';
const LOADS_MAX = 10;
let changes = 0;

async function loaded(load) {
  for (let attempt = 1; ; attempt += 1) {
    const before = changes;
    try {
      return await load();
    } catch (error) {
      const changed = changes > before || String(error.message).includes(NETWORK_CHANGED);
      if (!changed || attempt >= LOADS_MAX) throw error;
    }
  }
}

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
try {
  const browser = await chromium.connect(browserServer.wsEndpoint());
  const page = await browser.newPage();
  page.on('pageerror', (error) => process.stderr.write(`page: ${error.stack}\n`));
  page.on('console', (message) => process.stderr.write(`page: ${message.text()}\n`));
  page.on('requestfailed', (request) => {
    changes += request.failure()?.errorText === NETWORK_CHANGED;
  });
  await loaded(() => page.goto(`http://127.0.0.1:${server.address().port}/`));
  for (const path of scripts) await page.addScriptTag({ path });
  await page.waitForFunction('window.publisher && window.Janus && window.adapter');
  say({ ok: { pid: browserServer.process().pid } });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      const { do: name, ...options } = JSON.parse(line);
      const call = ([name, options]) => window.publisher[name](options);
      const act = () => page.evaluate(call, [name, options]);
      // Only what loads may be done again: a second publishing would be another stream.
      say({ ok: (await (name === 'play' ? loaded(act) : act())) ?? {} });
    } catch (error) {
      say({ error: String(error.message ?? error) });
    }
  }
} catch (error) {
  say({ error: String(error.stack ?? error) });
} finally {
  await browserServer.close();
  server.close();
  process.exit(0);
}
