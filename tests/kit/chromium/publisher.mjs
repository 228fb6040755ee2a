// Drives one browser with one publishing page. Commands come as JSON lines on stdin, `{"do": …, …}`; each gets
// one JSON line on stdout, `{"ok": …}` or `{"error": …}`. The browser ends when stdin does.
//
// usage: node publisher.mjs FOLDER_WITH_NODE_MODULES FOLDER_OF_JANUS_JS CHROMIUM

import { createRequire } from 'node:module';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [modules, janusFolder, executablePath] = process.argv.slice(2);
const require = createRequire(join(modules, 'package.json'));
const { chromium } = require('playwright-core');

const here = new URL('.', import.meta.url).pathname;
const files = {
  '/adapter.js': join(modules, 'node_modules/webrtc-adapter/out/adapter.js'),
  '/janus.js': join(janusFolder, 'janus.js'),
  '/page.js': join(here, 'page.js'),
};
const html = `<!doctype html><title>publisher</title><body>${Object.keys(files).map((f) => `<script src="${f}"></script>`).join('')}`;

// A page of this machine's own address is a secure context, which WebRTC wants.
const server = createServer((request, response) => {
  if (request.url in files) {
    response.setHeader('content-type', 'text/javascript').end(readFileSync(files[request.url]));
  } else {
    response.setHeader('content-type', 'text/html').end(request.url === '/' ? html : '');
  }
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

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
try {
  const browser = await chromium.connect(browserServer.wsEndpoint());
  const page = await browser.newPage();
  page.on('pageerror', (error) => process.stderr.write(`page: ${error.stack}\n`));
  page.on('console', (message) => process.stderr.write(`page: ${message.text()}\n`));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction('window.publisher && window.Janus && window.adapter');
  say({ ok: { pid: browserServer.process().pid } });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      const { do: name, ...options } = JSON.parse(line);
      const call = ([name, options]) => window.publisher[name](options);
      say({ ok: (await page.evaluate(call, [name, options])) ?? {} });
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
