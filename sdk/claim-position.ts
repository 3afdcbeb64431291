import type { NumberWithin, Transaction } from './connection.ts'
import type { Json } from './rows.ts'

/** Where a file stands. */
export interface Position {
  cursor: Json
  itemsProcessed: number
  itemsTotal: number | null
  accumulatedResults: Json
  checkpointSeq: number
}

/** What a save sends, but for the file's key and the number. */
export interface SaveArguments {
  p_cursor: Json
  p_items_processed: number
  p_accumulated_results?: Json | undefined
  p_items_total?: number | undefined
}

/** A save that is about to be sent. */
interface PlannedSave {
  args: SaveArguments
  tx: Transaction | undefined
  /** Where this save was made before, if it is one of the last transaction once more. */
  old: Position | undefined
  /** The number to save under, unless `within` says another. */
  checkpointSeq: number
  within: NumberWithin | undefined
}

/** Saves in one transaction: where the claim stood before, and which saves were the first and the latest. */
interface UncommittedSaves {
  /** The object alone does not tell a transaction: a node-postgres Client runs one after the other. */
  tx: Transaction
  transaction: string | undefined
  before: Position
  first: string
  beforeLatest: Position
  latest: string
}

/**
 * Where a claim stands after its saves, as far as this process can know: a transaction with saves in it may be rolled
 * back, and a save that got no answer may have taken effect or not. It never asks the database itself; it says when that
 * has to be done, and under which number to save.
 */
export class ClaimPosition {
  /** The last save, and the last one that is known to be committed. */
  #current: Position
  #committed: Position
  /** The last transaction with saves in it, which may have been rolled back since. */
  #uncommitted: UncommittedSaves | undefined
  /** A save that got no answer. */
  #unanswered: string | undefined
  /** Must the position be read before the next save? */
  #stale = false

  constructor(position: Position) {
    this.#current = this.#committed = position
  }

  get current(): Position {
    return this.#current
  }

  /** Is the last save one in a transaction, which may have been rolled back? */
  get isUncommitted(): boolean {
    return this.#uncommitted !== undefined
  }

  /** Must the position be read before this save? A save that got no answer may simply be made again, outside of one. */
  isInDoubt(args: SaveArguments, tx: Transaction | undefined): boolean {
    return (
      this.#stale ||
      (this.#unanswered !== undefined && (tx !== undefined || this.#unanswered !== textOf(args)))
    )
  }

  /**
   * Under which number to save: the next one; or the old one, when it is the same save as in a transaction before, which
   * was rolled back then: it is saved now, or acknowledged if it was committed after all.
   */
  plan(args: SaveArguments, tx: Transaction | undefined): PlannedSave {
    const last = this.#uncommitted
    // What tells one save from another is only looked at when there is one to tell it from.
    const request = last && textOf(args)
    const old =
      request === undefined
        ? undefined
        : request === last?.first
          ? last.before
          : request === last?.latest
            ? last.beforeLatest
            : undefined
    const next = this.#current.checkpointSeq + 1
    return {
      args,
      tx,
      old,
      checkpointSeq: old ? old.checkpointSeq + 1 : next,
      within:
        old && last?.transaction && last.tx === tx
          ? { transaction: last.transaction, checkpointSeq: next }
          : undefined,
    }
  }

  /** Notes that a save was answered: its number, and in which transaction it is. */
  noteSaved({ args, tx, old }: PlannedSave, checkpointSeq: number, transaction: string | undefined): void {
    const last = this.#uncommitted
    const isSame = tx !== undefined && last?.tx === tx && last.transaction === transaction
    const base = (!isSame && old) || this.#current
    // A save that follows those of another transaction shows that they were committed.
    if (last && !isSame && !old) this.#committed = this.#current
    this.#current = {
      cursor: args.p_cursor,
      itemsProcessed: args.p_items_processed,
      itemsTotal: args.p_items_total ?? base.itemsTotal,
      accumulatedResults: args.p_accumulated_results ?? base.accumulatedResults,
      checkpointSeq,
    }
    if (tx) {
      const latest = textOf(args)
      const { before, first } = isSame ? last : { before: base, first: latest }
      this.#uncommitted = { tx, transaction, before, first, beforeLatest: base, latest }
    } else {
      this.#uncommitted = undefined
      this.#committed = this.#current
    }
    this.#unanswered = undefined
  }

  /** Notes that a save got no answer. */
  noteUnanswered({ args, tx }: PlannedSave): void {
    if (tx) this.#stale = true
    else this.#unanswered = textOf(args)
  }

  /** Notes that a save was refused: back to the last committed one, until the position is read. */
  fallBack(): void {
    this.noteRead(this.#committed)
    this.#stale = true
  }

  /** Notes where the database says the file stands. */
  noteRead(position: Position): void {
    this.#current = this.#committed = position
    this.#uncommitted = undefined
    this.#unanswered = undefined
    this.#stale = false
  }
}

/** The position that a row of the database tells. */
export function positionOf(row: Position): Position {
  const { cursor, itemsProcessed, itemsTotal, accumulatedResults, checkpointSeq } = row
  return { cursor, itemsProcessed, itemsTotal, accumulatedResults, checkpointSeq }
}

function textOf(args: SaveArguments): string {
  return JSON.stringify(args, (_, value) => (typeof value === 'bigint' ? String(value) : value))
}
