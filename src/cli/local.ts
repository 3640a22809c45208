/**
 * What some commands do in their own process instead of asking the daemon. They import this module when they run: it brings the
 * whole daemon and its packages, and every other command starts in a third of the time without them.
 */
export {readJobFile} from '../bench/job-file.js'
export {withOptions} from '../bench/job-options.js'
export {readConfig} from '../config.js'
export {Daemon} from '../daemon.js'
export {runDemo} from '../demo/run.js'
export {formatStep} from '../demo/steps.js'
export {formatChecks} from '../doctor.js'
export {examineNode} from '../node-check.js'
