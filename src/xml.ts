import {StorageError} from './errors.js'
import {XmlElement as ParsedElement, parseXml as parse, XmlDocumentType, XmlText} from './packages/daemon.js'

/**
 * An element: attributes under `@name`, children under their names (an array where the element occurs more than once),
 * its text under `#text`, or a string where it has nothing but text.
 */
export interface XmlElement {
  [name: string]: XmlNode | XmlNode[] | undefined
}
export type XmlNode = string | XmlElement

// XML 1.0, 4.6
const characters: Record<string, string> = {lt: '<', gt: '>', amp: '&', quot: '"', apos: "'"}
const references = Object.fromEntries(Object.entries(characters).map(([name, character]) => [character, `&${name};`]))

/** A document as text, everything escaped. @throws INVALID_ARGUMENT for characters that XML 1.0 (2.2) cannot carry */
export function buildXml(document: XmlElement): string {
  checkCharacters(document)
  return childrenOf(document)
}

function childrenOf(element: XmlElement): string {
  let xml = ''
  for (const [name, child] of Object.entries(element)) {
    if (child === undefined || name.startsWith('@')) continue
    if (name === '#text') xml += escaped(child as string)
    else for (const node of Array.isArray(child) ? child : [child]) xml += buildElement(name, node)
  }
  return xml
}

function buildElement(name: string, node: XmlNode): string {
  let start = name
  if (typeof node !== 'string') {
    for (const [key, value] of Object.entries(node)) {
      if (key.startsWith('@')) start += ` ${key.slice(1)}="${escaped(value as string)}"`
    }
  }
  const content = typeof node === 'string' ? escaped(node) : childrenOf(node)
  return content === '' ? `<${start}/>` : `<${start}>${content}</${name}>`
}

function escaped(text: string): string {
  return /[&<>"']/.test(text) ? text.replace(/[&<>"']/g, character => references[character]!) : text
}

/**
 * Reads a document that libvirt wrote. Elements named in `lists` are always arrays. Values stay strings, and blanks stay
 * in elements that hold text alone. A document type declaration is refused: nothing that we read has one, and its entities
 * are how XML is made to blow up. The parser decides what is one: it stands in the prolog alone (XML 1.0, 2.8), and a
 * domain's metadata may hold the same characters in a comment or a CDATA section. @throws INVALID_ARGUMENT
 */
export function parseXml(text: string, lists: readonly string[] = []): XmlElement {
  try {
    const {children, root} = parse(text, {preserveDocumentType: true})
    if (children.some(child => child instanceof XmlDocumentType)) throw new Error('it has a DOCTYPE')
    const document: XmlElement = {}
    add(document, root!.name, nodeOf(root!, lists), lists)
    return document
  } catch (error) {
    throw malformed((error as Error).message.split('\n')[0]!)
  }
}

function nodeOf({attributes, children}: ParsedElement, lists: readonly string[]): XmlNode {
  const element: XmlElement = {}
  let text = ''
  let isTextAlone = true
  for (const [name, value] of Object.entries(attributes)) {
    element[`@${name}`] = value
    isTextAlone = false
  }
  for (const child of children) {
    if (child instanceof ParsedElement) {
      add(element, child.name, nodeOf(child, lists), lists)
      isTextAlone = false
    } else if (child instanceof XmlText) text += child.text
  }
  if (isTextAlone) return text
  if (!blank.test(text)) element['#text'] = text
  return element
}

const blank = /^\s*$/

function add(parent: XmlElement, name: string, node: XmlNode, lists: readonly string[]): void {
  // In an object this is no property like others; in a domain's metadata anybody may write it.
  if (name === '__proto__') return
  const before = Object.hasOwn(parent, name) ? parent[name] : undefined
  if (Array.isArray(before)) before.push(node)
  else if (before !== undefined) parent[name] = [before, node]
  else parent[name] = lists.includes(name) ? [node] : node
}

function malformed(why: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', `This is no XML that can be read: ${why}`)
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
