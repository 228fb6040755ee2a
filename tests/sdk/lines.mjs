// Commands come as JSON lines on stdin, `{"call": …, "args": …}`; each gets one JSON line on stdout, `{"ok": …}` or
// `{"error": {"kind", "status", "message"}}`. A program that an SDK's error brings down would end here too.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// A package of the folder as `import` finds it: Debian 12's Node 18 cannot `require` all that it needs.
export async function load(folder, name) {
  const at = join(folder, 'node_modules', name);
  const { exports } = JSON.parse(readFileSync(join(at, 'package.json'), 'utf8'));
  return import(pathToFileURL(join(at, exports['.'].import.default)));
}

export async function serve(calls, describe) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { call, args } = JSON.parse(line);
    let answer;
    try {
      if (!calls[call]) throw new Error(`this SDK has no ${call}`);
      answer = { ok: (await calls[call](args ?? {})) ?? null };
    } catch (error) {
      answer = { error: describe(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
}
