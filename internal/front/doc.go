// Package front is what the two HTTP fronts, api and socket, share.
package front
