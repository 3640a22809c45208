import type {Machine, MachineName} from './machine.js'
import {qemu} from './qemu.js'
import {uml} from './uml.js'
import type {LabOptions} from './vm.js'

const machines: Readonly<Record<MachineName, Machine>> = {uml, qemu}

export const machineNames = Object.keys(machines)

/**
 * The machines to try in turn, the first of them that comes up being the one. User Mode Linux, since it does not emulate a
 * processor, and QEMU after it where it cannot run; QEMU alone for more than one processor. What the caller names, or else
 * the environment's LUNPATH_LAB_MACHINE, is the only one.
 * @throws TypeError where the one named does not exist or cannot be what is wanted
 */
export function candidates({machine, cpus = 1}: Pick<LabOptions, 'machine' | 'cpus'>): readonly Machine[] {
  const wanted = machine ?? process.env.LUNPATH_LAB_MACHINE
  if (!wanted) return [uml, qemu].filter(({mostCpus}) => mostCpus >= cpus)
  const named = machines[wanted as MachineName]
  if (!named) throw new TypeError(`There is no machine ${JSON.stringify(wanted)}: ${machineNames.join(', ')}`)
  // The environment's is a wish, which some tests cannot fulfil.
  if (cpus > named.mostCpus && machine) throw new TypeError(`${named.title} has ${named.mostCpus} processor`)
  return [cpus > named.mostCpus ? qemu : named]
}
