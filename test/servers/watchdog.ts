import { type ChildProcess, spawn } from 'node:child_process'
import type { Socket } from 'node:net'

// The end of the parent, however it comes (return, exit(), Ctrl-C, SIGKILL), closes the pipe on the shell's
// standard input, and then the shell cleans up what it was told of last.
const script = `
pid=
while read -r word value; do
  case $word in
    running) pid=$value ;;
    ended) pid= ;;
    dismissed) exit ;;
  esac
done
if [ -n "$pid" ]; then
  kill -s "$1" "$pid"
  n=0
  while kill -0 "$pid" && [ "$n" -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
  kill -KILL "$pid"
fi
if [ -n "$2" ]; then rm -rf "$2"; fi
`

export interface Watchdog {
  /** From now on this child process is the one to end. Ends the watch on it by itself when it exits. */
  watch(child: ChildProcess): void
  /** Nothing is left to clean up. */
  dismiss(): void
}

/**
 * Starts a watchdog process: it sees to it that a child does not outlive this process, however this process ends, and
 * that the directory `removeDir`, when given, goes too. The child gets `signal`, and 5 s later SIGKILL.
 */
export function startWatchdog(signal: 'QUIT' | 'TERM', removeDir = ''): Watchdog {
  const shell = spawn('/bin/sh', ['-c', script, 'watchdog', signal, removeDir], {
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  const pipe = shell.stdin as unknown as Socket
  pipe.on('error', () => {})
  pipe.unref()
  shell.unref()
  return {
    watch(child) {
      if (child.pid === undefined) return
      pipe.write(`running ${child.pid}\n`)
      child.once('exit', () => pipe.writable && pipe.write('ended\n'))
    },
    dismiss() {
      pipe.end('dismissed\n')
    },
  }
}
