/** Where things are unless told otherwise: apart from config.ts, so that a client need not load what a daemon needs. */
export const defaultConfigPath = '/etc/lunpath/lunpath.toml'
export const defaultSocket = '/run/lunpath/lunpath.sock'
