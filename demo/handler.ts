// What the demo's workers do with a batch: every record becomes one row, numbered as in its file.

interface Batch {
  fileUrl: string
  firstRecord: number
}

export const target = 'public.vega_records'

export function handle(records: Record<string, unknown>[], { fileUrl, firstRecord }: Batch) {
  return records.map((record, index) => ({
    file_url: fileUrl,
    record_number: firstRecord + index,
    record,
  }))
}
