import test from 'ava'
import {buildXml, parseXml} from '../src/xml.js'

const text = `<?xml version='1.0'?>
<!-- <a>no element</a> -->
<domain type="kvm" id = '7'>
  <name>a &lt;b&gt; &quot;c&apos; &amp;amp; &#x44;&#69;</name>
  <acpi/>
  <empty></empty>
  <serial>  two  blanks </serial>
  <cmdline><![CDATA[x < y && z]]></cmdline>
  <disk dev='a&amp;"b'/><disk><target dev="vda>"/></disk>
</domain>
`

test('elements, attributes, text and references are read as XML 1.0 has them', t => {
  t.deepEqual(parseXml(text), {
    domain: {
      '@type': 'kvm',
      '@id': '7',
      name: 'a <b> "c\' &amp; DE',
      acpi: '',
      empty: '',
      serial: '  two  blanks ',
      cmdline: 'x < y && z',
      disk: [{'@dev': 'a&"b'}, {target: {'@dev': 'vda>'}}],
    },
  })
})

test('an element of a list is in an array also where it is the only one', t => {
  t.deepEqual(parseXml('<a><b/><c/></a>', ['b']), {a: {b: [''], c: ''}})
})

test('names that objects have of their own are names like others, and change no object', t => {
  const {a} = parseXml('<a><constructor>x</constructor><__proto__><disk/></__proto__></a>') as {a: object}
  t.deepEqual(Object.entries(a), [['constructor', 'x']])
  t.is(Object.getPrototypeOf(a), Object.prototype)
})

test('what is no well-formed document is refused', t => {
  const refused = [
    '<a>',
    '</a>',
    '<a></b>',
    '<a><b></a></b>',
    'a',
    '<a/>a',
    '<a b/>',
    '<a b=c/>',
    '<a b="<"/>',
    '<a b="/>',
    '<a>&nbsp;</a>',
    '<a>&#x110000;</a>',
  ]
  for (const bad of [...refused, '<', '<!-- ', '<!DOCTYPE a><a/>', '<!doctype a><a/>', '<a><![CDATA[x</a>']) {
    t.throws(() => parseXml(bad), {code: 'INVALID_ARGUMENT'}, bad)
  }
})

test('a DOCTYPE in the prolog is refused, and the same characters in a comment or in CDATA are text', t => {
  const prologs = [
    '<!DOCTYPE a>',
    '<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE a [<!ENTITY e "x">]>',
    '<!DOCTYPE a SYSTEM "b">',
  ]
  for (const prolog of prologs) {
    t.throws(() => parseXml(`${prolog}<a/>`), {code: 'INVALID_ARGUMENT', message: /DOCTYPE/}, prolog)
  }
  for (const inside of ['<a><!DOCTYPE b></a>', '<a/><!DOCTYPE a>']) {
    t.throws(() => parseXml(inside), {code: 'INVALID_ARGUMENT'}, inside)
  }
  t.deepEqual(
    parseXml('<!-- <!DOCTYPE a> --><a><!-- <!DOCTYPE b> --><b><![CDATA[<!DOCTYPE c>]]></b></a><!-- <!DOCTYPE d> -->'),
    {
      a: {b: '<!DOCTYPE c>'},
    },
  )
})

test('what is built is read back', t => {
  const document = {a: {'@x': '<>&"\'', b: ['1', {'@y': ''}, '&amp;'], c: {'#text': ' t ', '@z': 'z'}, d: ''}}
  t.deepEqual(parseXml(buildXml(document)), document)
})

test('a document of a megabyte that ends too early, or is too deep, is refused', t => {
  for (const piece of ["<disk a='b'/>", '<a>', ' x="y"', '<!--', '&']) {
    const long = `<domain>${piece.repeat(1_000_000 / piece.length)}`
    t.throws(() => parseXml(long), {code: 'INVALID_ARGUMENT'}, piece)
  }
})
