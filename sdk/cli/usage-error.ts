/** What was asked for cannot be done as it was said; the message says what to change. Ends the program with code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}
