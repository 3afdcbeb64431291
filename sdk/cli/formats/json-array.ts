import { pipeline, type Readable, Transform } from 'node:stream'
import { finished } from 'node:stream/promises'
import type jsonParser from 'stream-json/core/parser.js'
import type { Token } from 'stream-json/core/parser.js'
import { streamArray } from 'stream-json/streamers/stream-array.js'
import { verifier } from 'stream-json/utils/verifier.js'
import { withParser } from 'stream-json/utils/with-parser.js'
import { asRecord, recordTooLong } from './as-record.ts'
import { exactNumber } from './exact-number.ts'
import { ignoreResult } from './open-text.ts'
import { MAX_RECORD_LENGTH, type ParsedText, type SourceRecord } from './record-format.ts'

/**
 * Parses a JSON array of objects. Numbers a JavaScript number cannot hold arrive as text. `reopen` gives the text
 * a second time, to find out where it is wrong.
 */
export function parseJsonArray(text: Readable, reopen: () => Readable): ParsedText {
  let record = 0
  let lengthSinceRecord = 0
  const limit = new Transform({
    objectMode: true,
    highWaterMark: 1,
    transform(chunk: string, _encoding, done) {
      lengthSinceRecord += chunk.length
      if (lengthSinceRecord > MAX_RECORD_LENGTH) done(recordTooLong(record))
      else done(null, chunk)
    },
  })
  const assembleRecords = () => {
    const assemble = streamArray()
    const take = (token: Token) => {
      const element = assemble(keepNumber(token))
      if (typeof element !== 'object' || !('key' in element)) return element
      const value = asRecord(element.value, element.key)
      record = element.key + 1
      lengthSinceRecord = 0
      return value
    }
    // A stage with nothing to flush, as streamArray's own is; the type asks every stage for the mark of one.
    return take as jsonParser.TokenConsumer<SourceRecord>
  }
  const parser = withParser.asStream(assembleRecords, { packValues: true, streamValues: false })
  return {
    records: pipeline(text, limit, parser, ignoreResult),
    explain: async (error) =>
      (await findSyntaxError(reopen())) ?? `record ${record} or later: ${error.message}`,
  }
}

// The parser stops at the first error in a piece of text and does not say where in it; the verifier does.
async function findSyntaxError(text: Readable): Promise<string | null> {
  try {
    await finished(pipeline(text, verifier.asStream(), ignoreResult).resume())
    return null
  } catch (error) {
    const { line, pos, message } = error as verifier.VerifierError
    return line === undefined
      ? null
      : `line ${line}, column ${pos}: not JSON, ${message.replace(/^.*?: Verifier (has|cannot parse input:) /, '')}`
  }
}

function keepNumber(token: Token): Token {
  return token.name === 'numberValue' && typeof exactNumber(token.value) === 'string'
    ? { name: 'stringValue', value: token.value }
    : token
}
