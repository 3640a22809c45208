import test from 'ava'
import {differenceOf, formatTitles, parseTitles, titlesOf} from './titles.js'

test('1. the titles of a file are listed, those that loops and the lab make too, and no test runs', async t => {
  // Were they run, one would boot a machine and panic its kernel.
  const titles = await titlesOf(['dist/test/lab/outcomes.js'])
  t.deepEqual(
    titles.map(({title}) => title),
    [
      'passes',
      'fails by an assertion',
      'throws an error',
      'fails in a teardown',
      'is skipped',
      'runs here',
      'panics the kernel',
      'comes after the panic',
    ],
  )
  t.true(titles.every(({file}) => file === 'test/lab/outcomes.ts'))
  t.deepEqual(parseTitles(formatTitles(titles)), titles)
})

test('2. a title that another file has now has moved; one that no file has instead is gone', t => {
  const before = parseTitles('a.ts\tstays\na.ts\tmoves\na.ts\tgoes\na.ts\tin two\nb.ts\tin two\n')
  const after = parseTitles('a.ts\tstays\nc.ts\tmoves\nb.ts\tin two\nb.ts\tis new\n')
  t.deepEqual(differenceOf(before, after), {
    moved: [{title: 'moves', from: 'a.ts', to: 'c.ts'}],
    gone: [
      {file: 'a.ts', title: 'goes'},
      {file: 'a.ts', title: 'in two'},
    ],
  })
})

test('3. what a test file cannot load fails the list', async t => {
  await t.throwsAsync(titlesOf(['dist/test/no-such.test.js']), {message: /no-such/})
})
