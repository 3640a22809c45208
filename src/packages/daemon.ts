/**
 * What the daemon takes from npm. scripts/bundle.js replaces this module, once it is compiled, by one file with all of these
 * packages in it: Node loads that file in a third of the time that it needs for their hundreds of files. Types come from the
 * packages themselves, since a type loads nothing. Packages with native code cannot be here.
 */
export {AjvCompiler} from '@fastify/ajv-compiler'
export {SerializerSelector} from '@fastify/fast-json-stringify-compiler'
export {default as swagger} from '@fastify/swagger'
export {parseXml, XmlDocumentType, XmlElement, XmlText} from '@rgrove/parse-xml'
export {Type} from '@sinclair/typebox'
export {Value} from '@sinclair/typebox/value'
export {fastify, LogController} from 'fastify'
export {destination, pino} from 'pino'
export {Counter, collectDefaultMetrics, Gauge, Histogram, Registry} from 'prom-client'
export {parse as parseToml} from 'smol-toml'
