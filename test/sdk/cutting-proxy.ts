import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

export interface CuttingProxy extends AsyncDisposable {
  /** The database's URL, through the proxy. */
  url: string
  /**
   * What breaks next: `request`, the connection before the next message reaches the server; `answer`, the connection
   * when the next statement has run and its rows come back. As often as `times`.
   */
  cut(what: 'request' | 'answer', times?: number): void
  /** How many cuts are still to come. */
  readonly left: number
}

/** A TCP proxy before Postgres that loses requests or answers. */
export async function startCuttingProxy(databaseUrl: string): Promise<CuttingProxy> {
  const target = new URL(databaseUrl)
  const open = new Set<Socket>()
  let what: 'request' | 'answer' = 'request'
  let left = 0

  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname)
    const close = () => {
      client.destroy()
      upstream.destroy()
    }
    for (const socket of [client, upstream]) {
      open.add(socket)
      socket.on('close', close)
      socket.on('error', close)
      socket.setNoDelay(true)
    }
    client.on('data', (data) => {
      // A new connection's first messages are let through: a cut is to hit a statement.
      if (what === 'request' && left > 0 && data.includes('public.')) {
        left -= 1
        close()
      } else upstream.write(data)
    })
    upstream.on('data', (data) => {
      if (what === 'answer' && left > 0 && data.includes('SELECT ')) {
        left -= 1
        close()
      } else client.write(data)
    })
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const url = new URL(databaseUrl)
  url.port = String((server.address() as AddressInfo).port)
  return {
    url: url.href,
    cut(kind, times = 1) {
      what = kind
      left = times
    },
    get left() {
      return left
    },
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy()
      await new Promise<void>((done) => server.close(() => done()))
    },
  }
}
