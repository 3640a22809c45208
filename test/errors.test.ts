import {readFileSync} from 'node:fs'
import test from 'ava'
import {type ErrorCode, errorCodes, hasCode, nativeFacts, StorageError} from '../src/errors.js'

const sections = readFileSync('docs/errors.md', 'utf8')
  .split(/^## /m)
  .slice(1)
  .map(section => {
    const [heading, ...body] = section.split('\n')
    return {heading: heading!.trim(), body: body.join('\n')}
  })

test('each code has one heading in docs/errors.md, and each heading is a code', t => {
  t.deepEqual(sections.map(({heading}) => heading).sort(), Object.keys(errorCodes).sort())
})

test('each heading gives the HTTP status of its code and what to do next', t => {
  for (const {heading, body} of sections) {
    t.true(body.trim().startsWith(`HTTP ${errorCodes[heading as ErrorCode]}`), heading)
    t.regex(body, /\*\*Next:\*\* \S/, heading)
  }
})

test('an error carries its code, status, step, facts and cause', t => {
  const cause = Object.assign(new Error('ENOSPC: no space left'), {code: 'ENOSPC', errno: -28, syscall: 'write'})
  const error = new StorageError('POOL_FULL', 'No space', {op: 'volume.create', info: {id: '1'}, cause})
  t.is(error.status, 507)
  t.like(error, {name: 'StorageError', code: 'POOL_FULL', op: 'volume.create', info: {id: '1'}, cause})
  t.deepEqual(nativeFacts(error.cause), {
    message: 'ENOSPC: no space left',
    code: 'ENOSPC',
    errno: -28,
    syscall: 'write',
  })
  t.false('cause' in new StorageError('INTERNAL', 'none'))
})

test('hasCode tells a StorageError with one of the codes from everything else', t => {
  const error = new StorageError('POOL_FULL', 'full')
  t.true(hasCode(error, 'SIZE_INVALID', 'POOL_FULL'))
  t.false(hasCode(error, 'SIZE_INVALID'))
  t.false(hasCode(Object.assign(new Error('full'), {code: 'POOL_FULL'}), 'POOL_FULL'))
  t.false(hasCode(undefined, 'POOL_FULL'))
})
