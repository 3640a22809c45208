import {XMLBuilder, XMLParser} from 'fast-xml-parser'
import {StorageError} from './errors.js'

/**
 * An element: attributes under `@name`, children under their names (an array where the element occurs more than once),
 * its text under `#text`, or a string where it has nothing but text.
 */
export interface XmlElement {
  [name: string]: XmlNode | XmlNode[] | undefined
}
export type XmlNode = string | XmlElement

const shape = {ignoreAttributes: false, attributeNamePrefix: '@'}
const builder = new XMLBuilder({...shape, suppressBooleanAttributes: false, suppressEmptyNode: true})

/** A document as text, everything escaped. @throws INVALID_ARGUMENT for characters that XML 1.0 (2.2) cannot carry */
export function buildXml(document: XmlElement): string {
  checkCharacters(document)
  return builder.build(document)
}

/**
 * Reads a document that libvirt wrote; it is not checked for being well-formed. Elements named in `lists` are always arrays. Values stay strings. A DOCTYPE is refused: nothing
 * that we read has one, and its entities are how XML is made to blow up.
 * @throws INVALID_ARGUMENT
 */
export function parseXml(text: string, lists: readonly string[] = []): XmlElement {
  if (/<!DOCTYPE/i.test(text)) throw new StorageError('INVALID_ARGUMENT', 'XML with a DOCTYPE is refused')
  const parser = new XMLParser({
    ...shape,
    parseTagValue: false,
    parseAttributeValue: false,
    // A path may end in a blank.
    trimValues: false,
    // Numeric character references are decoded only together with HTML's names.
    htmlEntities: true,
    isArray: name => lists.includes(name),
  })
  return parser.parse(text) as XmlElement
}

/** The element at a path of names; undefined where it is absent, empty, or text alone. The first of several. */
export function elementAt(element: XmlElement | undefined, ...path: string[]): XmlElement | undefined {
  let current = element
  for (const name of path) {
    const next = current?.[name]
    const first = Array.isArray(next) ? next[0] : next
    if (typeof first !== 'object') return undefined
    current = first
  }
  return current
}

/** All elements of a name; one without attributes and children comes as an empty one. */
export function elementsOf(element: XmlElement | undefined, name: string): XmlElement[] {
  const found = element?.[name]
  const nodes = found === undefined ? [] : Array.isArray(found) ? found : [found]
  return nodes.map(node => (typeof node === 'string' ? {'#text': node} : node))
}

/** An attribute's value. */
export function attribute(element: XmlElement | undefined, name: string): string | undefined {
  const value = element?.[`@${name}`]
  return typeof value === 'string' ? value : undefined
}

/** The text of a child element. */
export function childText(element: XmlElement | undefined, name: string): string | undefined {
  const child = element?.[name]
  const node = Array.isArray(child) ? child[0] : child
  if (typeof node === 'string') return node
  const text = node?.['#text']
  return typeof text === 'string' ? text : undefined
}

function checkCharacters(node: XmlNode | XmlNode[] | undefined): void {
  if (node === undefined) return
  if (typeof node === 'string') {
    // Line breaks and tabs are legal but do not survive in an attribute (XML 1.0, 3.3.3), and no name of ours has any.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    if (/[\u0000-\u001f\u007f\ufffe\uffff]|\p{Surrogate}/u.test(node)) {
      throw new StorageError('INVALID_ARGUMENT', `${JSON.stringify(node.slice(0, 80))} holds a control character`)
    }
    return
  }
  for (const child of Array.isArray(node) ? node : Object.values(node)) checkCharacters(child)
}
