// Commands come as JSON lines on stdin, `{"call": …, "args": …}`; each gets one JSON line on stdout, `{"ok": …}` or
// `{"error": {"kind", "status", "message"}}`. A program that an SDK's error brings down would end here too.

import { createInterface } from 'node:readline';

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
