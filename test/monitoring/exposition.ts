/** A metric of the text format that Prometheus reads. */
export interface Metric {
  type: string
  help: string
  samples: { labels: Record<string, string>; value: number }[]
}

/**
 * Reads the text exposition format 0.0.4, more strictly than Prometheus does. Throws at the first line that is out of
 * form: a sample without HELP and TYPE before it, a metric in two places, a series twice, a bad name, label or value.
 */
export function parseExposition(text: string): Map<string, Metric> {
  if (!text.endsWith('\n')) throw new Error('the last line does not end')
  const metrics = new Map<string, Metric>()
  const series = new Set<string>()
  let current = ''
  let help = ''
  for (const line of text.slice(0, -1).split('\n')) {
    const fail = (why: string): never => {
      throw new Error(`${why}: ${line}`)
    }
    const [, kind, name = '', rest = ''] = /^# (HELP|TYPE) ([a-z_]+) (.+)$/.exec(line) ?? []
    if (kind === 'HELP') {
      if (metrics.has(name)) fail('a metric in two places')
      current = name
      help = rest
    } else if (kind === 'TYPE') {
      if (name !== current || !['counter', 'gauge'].includes(rest)) fail('a TYPE without its HELP')
      if ((rest === 'counter') !== name.endsWith('_total')) fail('a counter is called _total')
      metrics.set(name, { type: rest, help, samples: [] })
    } else {
      const [, sampled = '', labels = '', value = ''] =
        /^([a-z_]+)(?:\{(.*)\})? (-?\d+(?:\.\d+)?)$/.exec(line) ?? fail('neither a comment nor a sample')
      if (sampled !== current) fail('a sample outside of its metric')
      if (series.has(sampled + labels)) fail('a series twice')
      series.add(sampled + labels)
      metrics.get(sampled)?.samples.push({ labels: parseLabels(labels, fail), value: Number(value) })
    }
  }
  return metrics
}

function parseLabels(text: string, fail: (why: string) => never): Record<string, string> {
  const labels: Record<string, string> = {}
  const label = /([a-z_]+)="((?:[^"\\]|\\["\\n])*)"(?:,(?=.)|$)/y
  while (label.lastIndex < text.length) {
    const [, name = '', value = ''] = label.exec(text) ?? fail('bad labels')
    if (name in labels) fail('a label twice')
    labels[name] = value.replaceAll(/\\(.)/g, (_, escaped: string) => (escaped === 'n' ? '\n' : escaped))
  }
  return labels
}

/** The value of the one series of that metric that has these labels among its own. */
export function sampleOf(
  metrics: Map<string, Metric>,
  name: string,
  labels: Record<string, string> = {},
): number {
  const found = (metrics.get(name)?.samples ?? []).filter((sample) =>
    Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
  )
  const [sample] = found
  if (!sample || found.length > 1)
    throw new Error(`${found.length} series of ${name} ${JSON.stringify(labels)}`)
  return sample.value
}
