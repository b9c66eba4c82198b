/* A Vulkan layer that makes calls fail when a test says so. In C, for the loader's interface is a C header (vk_layer.h) that no crate has,
 * and a test can build one file with `cc` into a place that it knows; cargo says to no test where it puts a library.
 *
 * What a fault is: of the calls of one kind, the nth from now on, and `times` of them, return a result instead of being made.
 *   VK_ERROR_DEVICE_LOST: so does every later submission, wait and poll of that VkDevice. A new one works.
 *   VK_TIMEOUT: the GPU hangs. Waits take their time and time out, those without a timeout do not return, and what a poll says does not
 *   change, until the fault is taken back.
 * Calls are made as usual otherwise, and a device does its work to the end before it is lost: of what is destroyed afterwards, nothing is
 * in use. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

/* As in main.rs. ALLOCATE is device memory; MAKE is whatever else may find none: objects, mappings, command buffers. */
enum kind { ALLOCATE, MAKE, SUBMIT, WAIT, OPEN, KINDS };

static struct {
    int before, times, struck;
    VkResult result;
} faults[KINDS];

/* An instance or a device, found by what the loader puts first into each of its handles: queues and command buffers have their device's. */
struct layered {
    struct layered *next;
    void *key;
    VkInstance instance;
    /* None where this is an instance. */
    VkDevice device;
    PFN_vkGetInstanceProcAddr get_of_instance;
    /* Asked for while the instance is made: later the loader may answer with the first layer's. */
    PFN_vkDestroyInstance destroy_instance;
    PFN_vkGetDeviceProcAddr get_of_device;
    bool lost;
    /* The last value of its timeline that a poll has told. wgpu has one timeline for a device. */
    uint64_t told;
};

static struct layered *all;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static struct layered *find(const void *handle) {
    pthread_mutex_lock(&mutex);
    struct layered *found = all;
    while (found && found->key != *(void *const *)handle) found = found->next;
    pthread_mutex_unlock(&mutex);
    return found;
}

static struct layered *find_device_of(VkInstance instance) {
    pthread_mutex_lock(&mutex);
    struct layered *found = all;
    while (found && !(found->device && found->instance == instance)) found = found->next;
    pthread_mutex_unlock(&mutex);
    return found;
}

static struct layered *add(const void *handle) {
    struct layered *added = calloc(1, sizeof *added);
    if (!added) abort();
    pthread_mutex_lock(&mutex);
    added->key = *(void *const *)handle;
    added->next = all;
    all = added;
    pthread_mutex_unlock(&mutex);
    return added;
}

static void forget(struct layered *gone) {
    pthread_mutex_lock(&mutex);
    struct layered **place = &all;
    while (*place != gone) place = &(*place)->next;
    *place = gone->next;
    pthread_mutex_unlock(&mutex);
    free(gone);
}

#define EXPORTED __attribute__((visibility("default")))
/* The same function, of the next layer or the driver. */
#define NEXT(of, name) ((PFN_##name)(of)->get_of_device((of)->device, #name))
#define NEXT_OR_KHR(of, name) (NEXT(of, name) ? NEXT(of, name) : (PFN_##name)NEXT(of, name##KHR))

/* Sets the one fault of a kind, and returns how often the last one struck. Without `times` there is none. */
EXPORTED int logits_fault(int kind, int nth, int times, int result) {
    pthread_mutex_lock(&mutex);
    int struck = faults[kind].struck;
    faults[kind].before = nth, faults[kind].times = times, faults[kind].struck = 0, faults[kind].result = result;
    pthread_mutex_unlock(&mutex);
    return struck;
}

/* Sets a fault of a process that cannot call logits_fault: LOGITS_FAULT="kind nth times result". */
__attribute__((constructor)) static void set_by_environment(void) {
    const char *text = getenv("LOGITS_FAULT");
    int kind, nth, times, result;
    if (text && sscanf(text, "%d %d %d %d", &kind, &nth, &times, &result) == 4 && kind >= 0 && kind < KINDS)
        logits_fault(kind, nth, times, result);
}

/* What a call of this kind is to return in place of being made, or VK_SUCCESS. */
static VkResult strike(struct layered *of, enum kind kind) {
    VkResult result = VK_SUCCESS;
    pthread_mutex_lock(&mutex);
    if (of->lost && (kind == SUBMIT || kind == WAIT)) {
        result = VK_ERROR_DEVICE_LOST;
    } else if (faults[kind].times > 0 && faults[kind].before-- <= 0) {
        faults[kind].before = 0;
        faults[kind].times--;
        faults[kind].struck++;
        result = faults[kind].result;
    }
    pthread_mutex_unlock(&mutex);
    if (result == VK_ERROR_DEVICE_LOST && of->device && !of->lost) {
        NEXT(of, vkDeviceWaitIdle)(of->device);
        of->lost = true;
    }
    return result;
}

static void pause_for(uint64_t nanoseconds) {
    struct timespec time = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    nanosleep(&time, NULL);
}

/* A wait that gives up after so long. */
static VkResult strike_wait(struct layered *of, uint64_t timeout) {
    uint64_t waited = 0, slice = 1000000;
    VkResult result;
    while ((result = strike(of, WAIT)) == VK_TIMEOUT && waited < timeout) {
        pause_for(timeout - waited < slice ? timeout - waited : slice);
        waited += slice;
    }
    return result;
}

/* RESULT NAME(HANDLE, PARAMETERS) that fails as calls of its kind do. */
#define FAILS(kind, name, handle, parameters, ...)                                 \
    static VKAPI_ATTR VkResult VKAPI_CALL fails_##name parameters {                \
        struct layered *of = find(handle);                                         \
        VkResult result = strike(of, kind);                                        \
        return result != VK_SUCCESS ? result : NEXT(of, vk##name)(handle, __VA_ARGS__); \
    }
#define CREATES(name, info, made)                                                                                          \
    FAILS(MAKE, name, device, (VkDevice device, const info *create, const VkAllocationCallbacks *host, made *out), create, \
          host, out)

FAILS(ALLOCATE, AllocateMemory, device,
      (VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *host, VkDeviceMemory *out), info, host, out)
CREATES(CreateBuffer, VkBufferCreateInfo, VkBuffer)
CREATES(CreateShaderModule, VkShaderModuleCreateInfo, VkShaderModule)
CREATES(CreateDescriptorSetLayout, VkDescriptorSetLayoutCreateInfo, VkDescriptorSetLayout)
CREATES(CreatePipelineLayout, VkPipelineLayoutCreateInfo, VkPipelineLayout)
CREATES(CreateDescriptorPool, VkDescriptorPoolCreateInfo, VkDescriptorPool)
CREATES(CreateCommandPool, VkCommandPoolCreateInfo, VkCommandPool)
/* Semaphores are always made: where wgpu-hal 30 gets none for a device's first submission, it destroys another twice. */
CREATES(CreateFence, VkFenceCreateInfo, VkFence)
FAILS(MAKE, CreateComputePipelines, device,
      (VkDevice device, VkPipelineCache cache, uint32_t count, const VkComputePipelineCreateInfo *create,
       const VkAllocationCallbacks *host, VkPipeline *out), cache, count, create, host, out)
FAILS(MAKE, AllocateDescriptorSets, device,
      (VkDevice device, const VkDescriptorSetAllocateInfo *info, VkDescriptorSet *out), info, out)
FAILS(MAKE, AllocateCommandBuffers, device,
      (VkDevice device, const VkCommandBufferAllocateInfo *info, VkCommandBuffer *out), info, out)
FAILS(MAKE, BindBufferMemory, device, (VkDevice device, VkBuffer buffer, VkDeviceMemory memory, VkDeviceSize offset), buffer,
      memory, offset)
FAILS(MAKE, MapMemory, device,
      (VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize size, VkMemoryMapFlags flags, void **out), memory,
      offset, size, flags, out)
FAILS(MAKE, BeginCommandBuffer, commands, (VkCommandBuffer commands, const VkCommandBufferBeginInfo *info), info)
static VKAPI_ATTR VkResult VKAPI_CALL fails_EndCommandBuffer(VkCommandBuffer commands) {
    struct layered *of = find(commands);
    VkResult result = strike(of, MAKE);
    return result != VK_SUCCESS ? result : NEXT(of, vkEndCommandBuffer)(commands);
}
FAILS(SUBMIT, QueueSubmit, queue, (VkQueue queue, uint32_t count, const VkSubmitInfo *submits, VkFence fence), count, submits, fence)

static VKAPI_ATTR VkResult VKAPI_CALL fails_QueueSubmit2(VkQueue queue, uint32_t count, const VkSubmitInfo2 *submits, VkFence fence) {
    struct layered *of = find(queue);
    VkResult result = strike(of, SUBMIT);
    return result != VK_SUCCESS ? result : NEXT_OR_KHR(of, vkQueueSubmit2)(queue, count, submits, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL fails_WaitSemaphores(VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t timeout) {
    struct layered *of = find(device);
    VkResult result = strike_wait(of, timeout);
    return result != VK_SUCCESS ? result : NEXT_OR_KHR(of, vkWaitSemaphores)(device, info, timeout);
}

static VKAPI_ATTR VkResult VKAPI_CALL fails_WaitForFences(VkDevice device, uint32_t count, const VkFence *fences, VkBool32 all_of_them,
                                                          uint64_t timeout) {
    struct layered *of = find(device);
    VkResult result = strike_wait(of, timeout);
    return result != VK_SUCCESS ? result : NEXT(of, vkWaitForFences)(device, count, fences, all_of_them, timeout);
}

static VKAPI_ATTR VkResult VKAPI_CALL fails_GetSemaphoreCounterValue(VkDevice device, VkSemaphore semaphore, uint64_t *value) {
    struct layered *of = find(device);
    VkResult result = strike(of, WAIT);
    if (result == VK_SUCCESS) {
        result = NEXT_OR_KHR(of, vkGetSemaphoreCounterValue)(device, semaphore, value);
        of->told = *value;
    }
    *value = of->told;
    return result == VK_TIMEOUT ? VK_SUCCESS : result;
}

static VKAPI_ATTR VkResult VKAPI_CALL fails_GetFenceStatus(VkDevice device, VkFence fence) {
    struct layered *of = find(device);
    VkResult result = strike(of, WAIT);
    if (result == VK_TIMEOUT) return VK_NOT_READY;
    return result != VK_SUCCESS ? result : NEXT(of, vkGetFenceStatus)(device, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL fails_QueueWaitIdle(VkQueue queue) {
    struct layered *of = find(queue);
    VkResult result = strike_wait(of, UINT64_MAX);
    return result != VK_SUCCESS ? result : NEXT(of, vkQueueWaitIdle)(queue);
}

static VKAPI_ATTR VkResult VKAPI_CALL fails_DeviceWaitIdle(VkDevice device) {
    struct layered *of = find(device);
    VkResult result = strike_wait(of, UINT64_MAX);
    return result != VK_SUCCESS ? result : NEXT(of, vkDeviceWaitIdle)(device);
}

/* What the loader has left for us among the structures behind a create info. */
#define LINK(type, tag, info)                                                                                       \
    type *link = (type *)(info)->pNext;                                                                              \
    while (link && !(link->sType == (tag) && link->function == VK_LAYER_LINK_INFO)) link = (type *)link->pNext;      \
    if (!link) return VK_ERROR_INITIALIZATION_FAILED

static VKAPI_ATTR VkResult VKAPI_CALL makes_CreateInstance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *host,
                                                           VkInstance *out) {
    LINK(VkLayerInstanceCreateInfo, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO, info);
    PFN_vkGetInstanceProcAddr get = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateInstance)get(NULL, "vkCreateInstance"))(info, host, out);
    if (result != VK_SUCCESS) return result;
    struct layered *of = add(*out);
    of->instance = *out, of->get_of_instance = get;
    of->destroy_instance = (PFN_vkDestroyInstance)get(*out, "vkDestroyInstance");
    return result;
}

static VKAPI_ATTR void VKAPI_CALL makes_DestroyDevice(VkDevice device, const VkAllocationCallbacks *host) {
    struct layered *of = find(device);
    NEXT(of, vkDestroyDevice)(device, host);
    forget(of);
}

static VKAPI_ATTR void VKAPI_CALL makes_DestroyInstance(VkInstance instance, const VkAllocationCallbacks *host) {
    struct layered *of = find(instance), *left;
    /* wgpu leaks a device that it fails to open, or panics in dropping. The loader frees such a device with its instance; the validation layer
     * does not, and crashes once another handle has the same address. */
    while ((left = find_device_of(instance))) makes_DestroyDevice(left->device, NULL);
    of->destroy_instance(instance, host);
    forget(of);
}

static VKAPI_ATTR VkResult VKAPI_CALL makes_CreateDevice(VkPhysicalDevice adapter, const VkDeviceCreateInfo *info,
                                                         const VkAllocationCallbacks *host, VkDevice *out) {
    LINK(VkLayerDeviceCreateInfo, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO, info);
    struct layered *instance = find(adapter);
    PFN_vkGetInstanceProcAddr get = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    PFN_vkGetDeviceProcAddr get_of_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = strike(instance, OPEN);
    if (result != VK_SUCCESS) return result;
    result = ((PFN_vkCreateDevice)get(instance->instance, "vkCreateDevice"))(adapter, info, host, out);
    if (result != VK_SUCCESS) return result;
    struct layered *of = add(*out);
    of->instance = instance->instance, of->device = *out, of->get_of_device = get_of_device;
    return result;
}

static PFN_vkVoidFunction ours(const char *name) {
#define OURS(called, with) {"vk" #called, (PFN_vkVoidFunction)with##_##called}
#define OURS_AND_KHR(called) OURS(called, fails), {"vk" #called "KHR", (PFN_vkVoidFunction)fails_##called}
    static const struct {
        const char *name;
        PFN_vkVoidFunction function;
    } table[] = {
        OURS(CreateInstance, makes), OURS(DestroyInstance, makes), OURS(CreateDevice, makes), OURS(DestroyDevice, makes),
        OURS(AllocateMemory, fails), OURS(CreateBuffer, fails), OURS(CreateShaderModule, fails), OURS(CreateDescriptorSetLayout, fails),
        OURS(CreatePipelineLayout, fails), OURS(CreateDescriptorPool, fails), OURS(CreateCommandPool, fails),
        OURS(CreateFence, fails), OURS(CreateComputePipelines, fails),
        OURS(AllocateDescriptorSets, fails), OURS(AllocateCommandBuffers, fails), OURS(BindBufferMemory, fails), OURS(MapMemory, fails),
        OURS(BeginCommandBuffer, fails), OURS(EndCommandBuffer, fails), OURS(QueueSubmit, fails), OURS_AND_KHR(QueueSubmit2),
        OURS_AND_KHR(WaitSemaphores), OURS(WaitForFences, fails), OURS_AND_KHR(GetSemaphoreCounterValue), OURS(GetFenceStatus, fails),
        OURS(QueueWaitIdle, fails), OURS(DeviceWaitIdle, fails),
    };
    for (size_t nth = 0; nth < sizeof table / sizeof *table; nth++)
        if (!strcmp(table[nth].name, name)) return table[nth].function;
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_of_device(VkDevice device, const char *name) {
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)get_of_device;
    struct layered *of = find(device);
    PFN_vkVoidFunction theirs = of->get_of_device(device, name);
    /* A function of an extension that is not there is not there with us either. */
    return theirs && ours(name) ? ours(name) : theirs;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_of_instance(VkInstance instance, const char *name) {
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)get_of_instance;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)get_of_device;
    if (ours(name)) return ours(name);
    return instance ? find(instance)->get_of_instance(instance, name) : NULL;
}

EXPORTED VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *with) {
    with->loaderLayerInterfaceVersion = 2;
    with->pfnGetInstanceProcAddr = get_of_instance;
    with->pfnGetDeviceProcAddr = get_of_device;
    with->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
