/** Stable codes of {@link LibError}; a message may change between versions, a code does not. */
export type ErrorCode =
  | 'ERR_ARGUMENT' | 'ERR_DTYPE' | 'ERR_SHAPE' | 'ERR_RANGE' | 'ERR_DISPOSED' | 'ERR_UNSUPPORTED' | 'ERR_BACKEND_UNAVAILABLE'
  | 'ERR_OUT_OF_MEMORY' | 'ERR_CUDA' | 'ERR_NATIVE_LOAD' | 'ERR_CHECKPOINT' | 'ERR_IMAGE' | 'ERR_INTERNAL';

const codes: ReadonlySet<string> = new Set<ErrorCode>([
  'ERR_ARGUMENT', 'ERR_DTYPE', 'ERR_SHAPE', 'ERR_RANGE', 'ERR_DISPOSED', 'ERR_UNSUPPORTED', 'ERR_BACKEND_UNAVAILABLE',
  'ERR_OUT_OF_MEMORY', 'ERR_CUDA', 'ERR_NATIVE_LOAD', 'ERR_CHECKPOINT', 'ERR_IMAGE', 'ERR_INTERNAL',
]);

/**
 * The one class of error that this library throws or rejects with. Test `code`, not `instanceof`, where several realms or copies
 * of the package meet.
 */
export class LibError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'LibError';
    this.code = code;
  }
}

/** Throws a {@link LibError}: `[op] message`. */
export function fail(code: ErrorCode, op: string, message: string, options?: { cause?: unknown }): never {
  throw new LibError(code, `[${op}] ${message}`, options);
}

/** The `code` of an error from this library or its addon, else undefined. */
export function codeOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const { code } = error as { code?: unknown };
  return typeof code === 'string' ? code : undefined;
}

/**
 * Errors of the addon (plain `Error` with a `code` of ours) as {@link LibError} with the same code, message and stack; anything
 * else unchanged.
 */
export function fromNative(error: unknown): unknown {
  const code = codeOf(error);
  if (code === undefined || !codes.has(code) || error instanceof LibError) return error;
  const { message, stack } = error as Error;
  const wrapped = new LibError(code as ErrorCode, message);
  if (stack !== undefined) wrapped.stack = stack.replace(/^Error\b/, 'LibError');
  return wrapped;
}

/** Calls synchronous native code; its errors come out as {@link LibError}. */
export function guarded<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}
