// filemark: checkpoint and resume with exactly-once effects for file pipelines on Postgres.

export type { Time } from './arguments.ts'
export {
  CheckpointManager,
  type CheckpointManagerOptions,
  type FileCheckpoint,
  type FileStatus,
  type FileToClaim,
  type FileToRegister,
  type ListOptions,
  type PipelineStats,
  type PurgedFile,
  type RegisteredFiles,
  type RequeueOptions,
  type SkipOptions,
} from './checkpoint-manager.ts'
export type {
  CallOptions,
  DatabaseClient,
  PostgresJsClient,
  QueryClient,
  SupabaseClient,
  Transaction,
  WriteOptions,
} from './connection.ts'
export type { Database, Json } from './database.types.ts'
export {
  CheckpointConflictError,
  ClaimLostError,
  FilemarkError,
  type FilemarkErrorOptions,
  InvalidArgumentError,
  InvalidStateError,
  PermanentError,
  RetryAfterError,
  TooLargeError,
  UnavailableError,
  UnknownFileError,
} from './errors.ts'
export type {
  Checkpoint,
  CompletionOutcome,
  CompletionStats,
  FailedFile,
  FailOptions,
  FileClaim,
  PersistedRecords,
  SavedCheckpoint,
} from './file-claim.ts'
export type { Logger } from './logger.ts'
export type {
  ClaimRefusal,
  FileHandler,
  ProcessedFile,
  ProcessFileResult,
  ProcessOptions,
} from './process-file.ts'
export type { RetryOptions } from './retry.ts'
