/**
 * The function of that name and all that it calls, directly or not. `sources` has the body of each function by its name
 * with the schema; names without one are not followed.
 */
export function reachedFrom(name: string, sources: ReadonlyMap<string, string>): Set<string> {
  const reached = new Set([name])
  for (const caller of reached) {
    for (const [, callee = ''] of (sources.get(caller) ?? '').matchAll(
      /\b((?:filemark|public)\.\w+)\s*\(/g,
    )) {
      if (sources.has(callee)) reached.add(callee)
    }
  }
  return reached
}
