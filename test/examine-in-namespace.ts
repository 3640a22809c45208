import {examine} from '../src/doctor.js'

/**
 * Run in namespaces of its own, where parts of the machine are hidden: writes what doctor finds as JSON. Argument: the
 * port to ask about.
 */
process.stdout.write(JSON.stringify(await examine({portalPort: Number(process.argv[2])})))
