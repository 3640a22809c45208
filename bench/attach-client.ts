import {parentPort, workerData} from 'node:worker_threads'
import {ApiClient} from '../src/api/client.js'

/** The client of the event-loop trial, in a thread of its own so that it does not delay the loop that is measured. */
const {socket, domain} = workerData as {socket: string; domain: string}
const api = new ApiClient(socket, {maxSockets: 32})
const attached: string[] = []

async function attach(count: number): Promise<void> {
  const one = async () => {
    const {volume} = await api.call<{volume: {id: string}}>('POST', '/attachments', {domain, sizeBytes: 4 * 2 ** 20})
    attached.push(volume.id)
  }
  await Promise.all(Array.from({length: count}, one))
}

async function detachAll(): Promise<void> {
  for (const id of attached.splice(0)) {
    await api.call('DELETE', `/attachments/${id}`)
    await api.call('DELETE', `/volumes/${id}`)
  }
}

parentPort!.on('message', (message: {attach: number} | {detach: true}) => {
  const work = 'attach' in message ? attach(message.attach) : detachAll()
  work.then(
    () => parentPort!.postMessage(null),
    error => parentPort!.postMessage((error as Error).message),
  )
})
