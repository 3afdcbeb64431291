/**
 * The function of that name and all that it calls, directly or not. `sources` has the body of each function by its name
 * with the schema; names without one are not followed. What is named in a text is not called, unless the text is executed.
 */
export function reachedFrom(name: string, sources: ReadonlyMap<string, string>): Set<string> {
  const reached = new Set([name])
  for (const caller of reached) {
    const statements = (sources.get(caller) ?? '').replaceAll(
      /(\bexecute\s+(?:format\s*\(\s*)?)?'(?:[^']|'')*'/gi,
      (text, execute?: string) => (execute ? text : "''"),
    )
    for (const [, callee = ''] of statements.matchAll(/\b((?:filemark|public)\.\w+)\s*\(/g)) {
      if (sources.has(callee)) reached.add(callee)
    }
  }
  return reached
}
