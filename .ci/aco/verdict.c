// What a Vulkan driver's compiler makes of compute kernels, as it tells through VK_KHR_pipeline_executable_properties. Meant for the null
// device of Mesa's RADV, which compiles for a GPU that need not be there.
//     gcc -O2 -o verdict verdict.c -lvulkan
//     VK_DRIVER_FILES=RADEON_ICD RADV_FORCE_FAMILY=gfx1100 ./verdict THREADS FILE.spv...
// THREADS is the size that subgroups must have, or 0 where the driver may choose, as it may for wgpu. Prints the driver, then a line for
// each file: its name and each statistic as `name=value`, with tabs between them. Exits with 2 if anything fails.
#include <stdio.h>
#include <stdlib.h>
#include <vulkan/vulkan.h>

// As BINDINGS of src/gpu/pipelines.rs; the first is the uniform.
#define BINDINGS 9
#define STATISTICS 64

// Every failure is one of the tool.
static void check(VkResult result, const char *what) {
    if (result == VK_SUCCESS) return;
    fprintf(stderr, "%s failed: %d\n", what, result);
    exit(2);
}
#define CHECK(call) check(call, #call)

static void *loaded(VkDevice device, const char *name) {
    void *function = (void *)vkGetDeviceProcAddr(device, name);
    if (!function) check(VK_ERROR_EXTENSION_NOT_PRESENT, name);
    return function;
}

static VkPhysicalDevice open_driver(void) {
    VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_3};
    VkInstanceCreateInfo create = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
    VkInstance instance;
    CHECK(vkCreateInstance(&create, NULL, &instance));
    VkPhysicalDevice physical = VK_NULL_HANDLE;
    uint32_t count = 1;
    VkResult result = vkEnumeratePhysicalDevices(instance, &count, &physical);
    check(count == 1 ? result : VK_ERROR_INITIALIZATION_FAILED, "to find one device");
    VkPhysicalDeviceDriverProperties driver = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceProperties2 about = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &driver};
    vkGetPhysicalDeviceProperties2(physical, &about);
    printf("%s, %s, %s\n", driver.driverName, driver.driverInfo, about.properties.deviceName);
    return physical;
}

// With what wgpu-hal 30 enables of what could change code: buffers are robust whether or not a module is trusted.
static VkDevice open_device(VkPhysicalDevice physical) {
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR told = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR, .pipelineExecutableInfo = VK_TRUE};
    VkPhysicalDeviceRobustness2FeaturesEXT robust = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT, .pNext = &told, .robustBufferAccess2 = VK_TRUE};
    VkPhysicalDeviceVulkan13Features vulkan13 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES, .pNext = &robust, .subgroupSizeControl = VK_TRUE};
    VkPhysicalDeviceFeatures features = {.robustBufferAccess = VK_TRUE};
    const char *extensions[] = {VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME, VK_EXT_ROBUSTNESS_2_EXTENSION_NAME};
    float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
    VkDeviceCreateInfo create = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                 .pNext = &vulkan13,
                                 .queueCreateInfoCount = 1,
                                 .pQueueCreateInfos = &queue,
                                 .enabledExtensionCount = sizeof extensions / sizeof *extensions,
                                 .ppEnabledExtensionNames = extensions,
                                 .pEnabledFeatures = &features};
    VkDevice device;
    CHECK(vkCreateDevice(physical, &create, NULL, &device));
    return device;
}

static VkPipelineLayout layout_of_all(VkDevice device) {
    VkDescriptorSetLayoutBinding bindings[BINDINGS];
    for (uint32_t nth = 0; nth < BINDINGS; nth++)
        bindings[nth] = (VkDescriptorSetLayoutBinding){
            nth, nth ? VK_DESCRIPTOR_TYPE_STORAGE_BUFFER : VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    VkDescriptorSetLayoutCreateInfo of_set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = BINDINGS, .pBindings = bindings};
    VkDescriptorSetLayout set;
    CHECK(vkCreateDescriptorSetLayout(device, &of_set, NULL, &set));
    VkPipelineLayoutCreateInfo create = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .setLayoutCount = 1, .pSetLayouts = &set};
    VkPipelineLayout layout;
    CHECK(vkCreatePipelineLayout(device, &create, NULL, &layout));
    return layout;
}

static VkShaderModule module_of(VkDevice device, const char *path) {
    FILE *file = fopen(path, "rb");
    check(file ? VK_SUCCESS : VK_ERROR_UNKNOWN, path);
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    rewind(file);
    uint32_t *words = malloc(bytes > 0 ? bytes : 1);
    check(words && bytes > 0 && fread(words, 1, bytes, file) == (size_t)bytes ? VK_SUCCESS : VK_ERROR_UNKNOWN, path);
    fclose(file);
    VkShaderModuleCreateInfo create = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = bytes, .pCode = words};
    VkShaderModule module;
    CHECK(vkCreateShaderModule(device, &create, NULL, &module));
    free(words);
    return module;
}

static VkPipeline compiled(VkDevice device, VkPipelineLayout layout, VkShaderModule module, uint32_t threads) {
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO, .requiredSubgroupSize = threads};
    VkPipelineShaderStageCreateInfo stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                             .pNext = threads ? &size : NULL,
                                             .flags = threads ? 0 : VK_PIPELINE_SHADER_STAGE_CREATE_ALLOW_VARYING_SUBGROUP_SIZE_BIT,
                                             .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                             .module = module,
                                             .pName = "main"};
    VkComputePipelineCreateInfo create = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                          .flags = VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR,
                                          .stage = stage,
                                          .layout = layout};
    VkPipeline pipeline;
    CHECK(vkCreateComputePipelines(device, VK_NULL_HANDLE, 1, &create, NULL, &pipeline));
    return pipeline;
}

static void print(const VkPipelineExecutableStatisticKHR *statistic) {
    printf("\t%s=", statistic->name);
    switch (statistic->format) {
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR: printf("%llu", (unsigned long long)statistic->value.u64); break;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR: printf("%lld", (long long)statistic->value.i64); break;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR: printf("%g", statistic->value.f64); break;
    default: printf("%u", statistic->value.b32);
    }
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "usage: verdict THREADS FILE.spv...\n");
        return 2;
    }
    VkPhysicalDevice physical = open_driver();
    VkDevice device = open_device(physical);
    PFN_vkGetPipelineExecutablePropertiesKHR properties = loaded(device, "vkGetPipelineExecutablePropertiesKHR");
    PFN_vkGetPipelineExecutableStatisticsKHR statistics = loaded(device, "vkGetPipelineExecutableStatisticsKHR");
    VkPipelineLayout layout = layout_of_all(device);
    for (int nth = 2; nth < count; nth++) {
        VkShaderModule module = module_of(device, arguments[nth]);
        VkPipeline pipeline = compiled(device, layout, module, atoi(arguments[1]));
        VkPipelineInfoKHR of_pipeline = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
        VkPipelineExecutablePropertiesKHR about = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
        uint32_t found = 1;
        CHECK(properties(device, &of_pipeline, &found, &about));
        VkPipelineExecutableInfoKHR executable = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline};
        VkPipelineExecutableStatisticKHR told[STATISTICS] = {0};
        for (uint32_t of = 0; of < STATISTICS; of++) told[of].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR;
        found = STATISTICS;
        CHECK(statistics(device, &executable, &found, told));
        printf("%s\tSubgroup=%u", arguments[nth], about.subgroupSize);
        for (uint32_t of = 0; of < found; of++) print(&told[of]);
        printf("\n");
        fflush(stdout);
        vkDestroyPipeline(device, pipeline, NULL);
        vkDestroyShaderModule(device, module, NULL);
    }
    return 0;
}
