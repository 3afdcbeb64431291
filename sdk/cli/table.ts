/** Lays rows out in columns under a heading; columns of numbers stand to the right. A heading may be empty. */
export function formatTable(
  heading: readonly string[],
  rows: readonly (readonly (string | number)[])[],
): string {
  const cells = [heading, ...rows].map((row) => row.map(formatCell))
  const widths = heading.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)))
  const isNumeric = heading.map((_, column) => rows.some((row) => typeof row[column] === 'number'))
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) =>
        isNumeric[column] ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0),
      )
      .join('  ')
      .trimEnd()
  return [
    line(cells[0] ?? []),
    line(widths.map((width, column) => '-'.repeat(heading[column] ? width : 0))),
    ...cells.slice(1).map(line),
  ].join('\n')
}

function formatCell(cell: string | number): string {
  return typeof cell === 'number' ? cell.toLocaleString('en-US') : cell
}
